"""The base of all schedules: a value as a pure function of the tick, with durations in ticks or shares of the run."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral

from lightning_reg import _checks

Duration = int | float


class UnknownLengthError(ValueError):
    """A duration is a share of a run of unknown length."""

    def __init__(self, share: float) -> None:
        self.fact = f"A duration of {share:g} is a share of the run, but this run has no known length."
        super().__init__(
            f"{self.fact} Give the duration as an int (ticks), or limit the run: `max_epochs`, or, with automatic"
            " optimization, `max_steps`."
        )


def check_duration(name: str, value: object) -> None:
    """Raise unless `value` is a count of ticks or a share of the run."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            msg = f"`{name}` must be at least 1 tick, or a share of the run in (0, 1], got {value}."
            raise ValueError(msg)
    elif isinstance(value, Integral) and not isinstance(value, bool):
        # NumPy's 1 would be read as the whole run.
        msg = f"`{name}` must be a Python int (ticks) or a float, got {value!r} of type {type(value).__name__}."
        raise TypeError(f"{msg} Pass `int(...)` of it.")
    elif not 0 < _checks.number(name, value) <= 1:
        msg = (
            f"`{name}` must be an int (ticks) or a float in (0, 1] (a share of the run), got {value}."
            f" For {value:g} ticks write an int."
        )
        raise ValueError(msg)


def check_schedule(value: object, what: str, remedy: str = "") -> None:
    """Raise unless `value` is a schedule or a callable `what`, such as "from step to factor"; refuse classes."""
    if isinstance(value, type) or not callable(value):
        msg = f"`schedule` must be a schedule or a callable {what}, got {value!r}.{remedy}"
        raise TypeError(msg)


def to_ticks(duration: Duration, total: float) -> int:
    """Return `duration` in whole ticks, at least 1, of a run of `total` ticks."""
    return duration if isinstance(duration, int) else max(1, round(share_to_ticks(duration, total)))


def share_to_ticks(share: float, total: float) -> float:
    """Return a share of a run of `total` ticks, in ticks, not rounded."""
    if not math.isfinite(total):
        raise UnknownLengthError(share)
    return share * total


class Schedule(ABC):
    """A value as a pure function of the tick.

    Subclasses are frozen dataclasses: they compare, hash, print, pickle and come from YAML.
    """

    @abstractmethod
    def __call__(self, tick: int) -> float:
        """Return the value at `tick` (>= 0)."""

    def resolve(self, total: float) -> "Schedule":
        """Return the same schedule with every duration in ticks.

        Args:
            total: Length of the run in ticks; infinite if unknown.

        Returns:
            A schedule that can be called.

        Raises:
            ValueError: If a duration is a share of the run and `total` is infinite.

        """
        del total  # only a schedule with durations needs it
        return self

    def bounds(self, total: float) -> tuple[float, float] | None:
        """Return the least and the largest value of the first `total` ticks, so that bad values are found early.

        Args:
            total: Number of ticks, at least 1; infinite if unknown.

        Returns:
            The two values, or `None` if they are unknown without a call at every tick, as here.

        """
        del total  # for subclasses
        return None


def resolve(schedule: Callable[[int], float], total: float) -> Callable[[int], float]:
    """Return `schedule` with its durations in ticks; return any other callable unchanged.

    Args:
        schedule: A schedule, or any callable from ticks to values.
        total: Length of the run in ticks; infinite if unknown.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `total` is negative, or if a duration is a share of the run and `total` is infinite.

    """
    check_schedule(schedule, "from tick to value")
    _check_total(total)
    return schedule.resolve(total) if isinstance(schedule, Schedule) else schedule


def _check_total(total: object) -> None:
    if not isinstance(total, float) or math.isfinite(total):
        _checks.non_negative("total", total)


def ticks(duration: Duration) -> int:
    """Return a resolved duration."""
    if not isinstance(duration, int):
        msg = (
            f"A duration of {duration:g} is a share of the run, but this schedule does not know the run's length."
            " Call `schedule.resolve(total)` first, or give the duration as an int (ticks)."
        )
        raise ValueError(msg)  # noqa: TRY004  # the type is allowed, its place is not
    return duration
