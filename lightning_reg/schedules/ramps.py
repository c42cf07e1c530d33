"""Schedules that go from one value to another."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.schedules.base import Duration, Schedule, check_duration, ticks, to_ticks


@dataclass(frozen=True)
class Constant(Schedule):
    r"""A constant value, :math:`v(t) = c`.

    Args:
        value: The value.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is not finite.

    Example:
        >>> Constant(0.5)(100)
        0.5

    """

    value: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        _checks.number("value", self.value)

    @override
    def __call__(self, tick: int) -> float:
        return self.value

    @override
    def bounds(self, total: float) -> tuple[float, float]:
        return self.value, self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From `start` at tick 0 to `end` at tick `duration`, constant afterwards."""

    start: float
    end: float
    duration: Duration = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        _checks.number("start", self.start)
        _checks.number("end", self.end)
        check_duration("duration", self.duration)

    @override
    def resolve(self, total: float) -> Schedule:
        return replace(self, duration=to_ticks(self.duration, total))

    @override
    def __call__(self, tick: int) -> float:
        progress = tick / ticks(self.duration)
        # Return the ends as given: the formulas would only reach them up to rounding.
        return self.end if progress >= 1 else self._between(progress)

    @override
    def bounds(self, total: float) -> tuple[float, float]:
        # Every ramp is monotonic.
        ends = (self(0), self.end if math.isinf(total) else self(int(total) - 1))
        return min(ends), max(ends)

    @abstractmethod
    def _between(self, progress: float) -> float:
        """Return the value at `progress` in [0, 1)."""


@dataclass(frozen=True)
class Linear(_Ramp):
    r"""A straight line, :math:`v(t) = s + (e - s)\, t / T` up to tick :math:`T`, then :math:`e`.

    Args:
        start: Value at tick 0.
        end: Value from tick `duration` on.
        duration: Length :math:`T` of the ramp: ticks (int) or share of the run (float); by default the whole run.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a value is not finite, or `duration` neither ticks >= 1 nor a share in (0, 1].

    Example:
        >>> warm_up = Linear(0.0, 1.0, 100)
        >>> warm_up(0), warm_up(25), warm_up(1000)
        (0.0, 0.25, 1.0)

    """

    @override
    def _between(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Cosine(_Ramp):
    r"""Half a cosine, :math:`v(t) = s + (e - s)(1 - \cos(\pi t / T)) / 2` up to tick :math:`T`, then :math:`e`.

    Args:
        start: Value at tick 0.
        end: Value from tick `duration` on.
        duration: Length :math:`T` of the ramp: ticks (int) or share of the run (float); by default the whole run.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a value is not finite, or `duration` neither ticks >= 1 nor a share in (0, 1].

    Example:
        >>> Cosine(1.0, 0.0, 100)(50)
        0.5

    Reference:
        Loshchilov & Hutter, SGDR, 2017, arXiv:1608.03983.

    """

    @override
    def _between(self, progress: float) -> float:
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Exponential(_Ramp):
    r"""The same factor every tick, :math:`v(t) = s\,(e / s)^{t / T}` up to tick :math:`T`, then :math:`e`.

    Args:
        start: Value at tick 0; not 0.
        end: Value from tick `duration` on; not 0, with the sign of `start`.
        duration: Length :math:`T` of the ramp: ticks (int) or share of the run (float); by default the whole run.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a value is not finite, `duration` neither ticks >= 1 nor a share in (0, 1], or if `start` and
            `end` do not have the same sign.

    Example:
        >>> Exponential(1.0, 0.01, 100)(50)
        0.1

    """

    @override
    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if 0 in (self.start, self.end) or (self.start > 0) != (self.end > 0):
            msg = (
                "`start` and `end` of an Exponential must have the same sign and not be 0,"
                f" got {self.start:g} and {self.end:g}. Use Linear or Cosine for a ramp from or to 0."
            )
            raise ValueError(msg)

    @override
    def _between(self, progress: float) -> float:
        return float(self.start * (self.end / self.start) ** progress)
