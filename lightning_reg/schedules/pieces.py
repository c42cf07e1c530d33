"""Schedules made of pieces, one after the other."""

import math
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, replace

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.schedules.base import Duration, Schedule, check_duration, resolve, share_to_ticks, ticks


@dataclass(frozen=True)
class Piecewise(Schedule):
    r"""Constant pieces, one after the other: :math:`v(t) = c_i` from tick :math:`\sum_{j<i} T_j` on.

    Args:
        values: Value :math:`c_i` of each piece.
        durations: Length :math:`T_i` of every piece but the last, which never ends: ticks (int) or share of the run
            (float).

    Raises:
        TypeError: If an argument is not a list of numbers.
        ValueError: If a value is not finite, a duration is neither ticks >= 1 nor a share in (0, 1], or `values` is not
            one longer than `durations`.

    Example:
        Dropout off for the first 1000 ticks, then on:

        >>> schedule = Piecewise(values=(0.0, 0.5), durations=(1000,))
        >>> schedule(999), schedule(1000)
        (0.0, 0.5)

    """

    values: tuple[float, ...]
    durations: tuple[Duration, ...]

    def __post_init__(self) -> None:
        """Check the fields."""
        _freeze(self, "values", self.values)
        for value in self.values:
            _checks.number("values", value)
        _check_durations(self, len(self.values), "values")

    @override
    def resolve(self, total: float) -> Schedule:
        return replace(self, durations=_durations_in_ticks(self.durations, total))

    @override
    def __call__(self, tick: int) -> float:
        index, _ = _piece(self.durations, tick)
        return self.values[index]

    @override
    def bounds(self, total: float) -> tuple[float, float]:
        reached = self.values[: len(_lengths(self.durations, total))]
        return min(reached), max(reached)


@dataclass(frozen=True)
class Sequence(Schedule):
    r"""Schedules one after the other, :math:`v(t) = v_i(t - \sum_{j<i} T_j)`; each counts its own ticks.

    Args:
        schedules: The schedules. Shares inside them are also shares of the whole run.
        durations: Length :math:`T_i` of every schedule but the last: ticks (int) or share of the run (float).

    Raises:
        TypeError: If an argument is not a list, or a schedule not callable.
        ValueError: If a duration is neither ticks >= 1 nor a share in (0, 1], or `schedules` is not one longer than
            `durations`.

    Example:
        >>> from lightning_reg import Constant, Linear
        >>> schedule = Sequence((Constant(0.0), Linear(0.0, 1.0, 10)), durations=(100,))
        >>> schedule(100), schedule(105)
        (0.0, 0.5)

    """

    schedules: tuple[Callable[[int], float], ...]
    durations: tuple[Duration, ...]

    def __post_init__(self) -> None:
        """Check the fields."""
        _freeze(self, "schedules", self.schedules)
        for schedule in self.schedules:
            if isinstance(schedule, type) or not callable(schedule):
                msg = f"`schedules` must hold schedules, got {schedule!r}."
                raise TypeError(msg)
        _check_durations(self, len(self.schedules), "schedules")

    @override
    def resolve(self, total: float) -> Schedule:
        return replace(
            self,
            schedules=tuple(resolve(item, total) for item in self.schedules),
            durations=_durations_in_ticks(self.durations, total),
        )

    @override
    def __call__(self, tick: int) -> float:
        index, start = _piece(self.durations, tick)
        return self.schedules[index](tick - start)

    @override
    def bounds(self, total: float) -> tuple[float, float] | None:
        lows, highs = [], []
        for schedule, length in zip(self.schedules, _lengths(self.durations, total), strict=False):
            bounds = schedule.bounds(length) if isinstance(schedule, Schedule) else None
            if bounds is None:
                return None
            lows.append(bounds[0])
            highs.append(bounds[1])
        return min(lows), max(highs)


def _freeze(schedule: Schedule, name: str, value: object) -> None:
    """Store a sequence (YAML gives lists) as a tuple, so that the schedule stays hashable."""
    if not _checks.is_list(value):
        msg = f"`{name}` must be a list or tuple, got {value!r}."
        raise TypeError(msg)
    object.__setattr__(schedule, name, tuple(value))


def _check_durations(schedule: Piecewise | Sequence, pieces: int, name: str) -> None:
    _freeze(schedule, "durations", schedule.durations)
    for duration in schedule.durations:
        check_duration("durations", duration)
    if len(schedule.durations) != pieces - 1:
        msg = (
            f"`durations` must be one shorter than `{name}`, because the last piece never ends,"
            f" got {len(schedule.durations)} and {pieces}."
        )
        raise ValueError(msg)


def _durations_in_ticks(durations: AbstractSequence[Duration], total: float) -> tuple[int, ...]:
    """Return `durations` in ticks; the start and end of each share are rounded to the nearest tick.

    If each length were rounded on its own, ten times a tenth of 15 ticks would be 20: the last pieces would be lost.
    """
    in_ticks: list[int] = []
    exact, start = 0.0, 0
    for duration in durations:
        exact += duration if isinstance(duration, int) else share_to_ticks(duration, total)
        in_ticks.append(duration if isinstance(duration, int) else max(1, round(exact) - start))
        start += in_ticks[-1]
    return tuple(in_ticks)


def _piece(durations: AbstractSequence[Duration], tick: int) -> tuple[int, int]:
    """Return the index of the piece that holds `tick`, and the tick at which that piece starts."""
    start = 0
    for index, duration in enumerate(durations):
        if tick < start + ticks(duration):
            return index, start
        start += ticks(duration)
    return len(durations), start


def _lengths(durations: AbstractSequence[Duration], total: float) -> list[float]:
    """Return the length of each piece that is reached within `total` ticks."""
    lengths: list[float] = []
    left = total
    for duration in (*durations, math.inf):
        if left <= 0:
            break
        lengths.append(min(left, duration if math.isinf(duration) else ticks(duration)))
        left -= lengths[-1]
    return lengths
