"""Named schedules from the literature."""

import math
from dataclasses import dataclass, replace

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.schedules.base import Duration, Schedule, check_duration, ticks, to_ticks
from lightning_reg.schedules.pieces import Piecewise
from lightning_reg.schedules.ramps import Linear


@dataclass(frozen=True, repr=False)
class _Saturation(Schedule):
    """The rise of curriculum dropout: `rate` times (1 - exp(-10 t / T)), without an end."""

    rate: float
    duration: Duration

    def __post_init__(self) -> None:
        """Check the fields."""
        _check_rate(self.rate)
        check_duration("duration", self.duration)

    @override
    def __repr__(self) -> str:
        return f"curriculum_dropout(rate={self.rate!r}, duration={self.duration!r})"

    @override
    def resolve(self, total: float) -> Schedule:
        return replace(self, duration=to_ticks(self.duration, total))

    @override
    def __call__(self, tick: int) -> float:
        return self.rate * (1 - math.exp(-10 * tick / ticks(self.duration)))

    @override
    def bounds(self, total: float) -> tuple[float, float]:
        return 0.0, self.rate if math.isinf(total) else self(int(total) - 1)


def _check_rate(rate: float) -> None:
    if not 0 <= _checks.number("rate", rate) < 1:
        msg = f"`rate` must be in [0, 1), got {rate}."
        raise ValueError(msg)


def early_dropout(rate: float, duration: Duration = 50 / 300) -> Schedule:
    """Dropout at the start only, against underfitting: linear from `rate` to 0 within `duration`, then 0.

    Args:
        rate: Dropout rate at tick 0, in [0, 1).
        duration: Ticks (int) or share of the run (float). Default: the paper's 50 of 300 epochs.

    Returns:
        The schedule.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If `rate` or `duration` is out of range.

    Example:
        >>> early_dropout(0.1, duration=100)(50)
        0.05

    Reference:
        Liu et al., Dropout Reduces Underfitting, 2023, arXiv:2303.01500.

    """
    _check_rate(rate)
    return Linear(rate, 0.0, duration)


def late_dropout(rate: float, duration: Duration = 50 / 300) -> Schedule:
    """No dropout for the first `duration`, then `rate`, against overfitting.

    Args:
        rate: Dropout rate after `duration`, in [0, 1).
        duration: Ticks (int) or share of the run (float). Default: the paper's 50 of 300 epochs.

    Returns:
        The schedule.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If `rate` or `duration` is out of range.

    Example:
        >>> schedule = late_dropout(0.4, duration=100)
        >>> schedule(99), schedule(100)
        (0.0, 0.4)

    Reference:
        Liu et al., Dropout Reduces Underfitting, 2023, arXiv:2303.01500.

    """
    _check_rate(rate)
    check_duration("duration", duration)
    return Piecewise((0.0, rate), (duration,))


def curriculum_dropout(rate: float, duration: Duration = 1.0) -> Schedule:
    r"""Dropout that grows with training, :math:`v(t) = p\,(1 - e^{-10 t / T})`.

    Args:
        rate: Dropout rate :math:`p` that the schedule approaches, in [0, 1).
        duration: :math:`T`, ticks (int) or share of the run (float); at :math:`T` the rate is :math:`0.99995\,p`.
            Default: the whole run.

    Returns:
        The schedule.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If `rate` or `duration` is out of range.

    Example:
        >>> schedule = curriculum_dropout(0.5, duration=1000)
        >>> schedule(0), round(schedule(100), 4)
        (0.0, 0.3161)

    Reference:
        Morerio et al., Curriculum Dropout, 2017, arXiv:1703.06229.

    """
    return _Saturation(rate, duration)
