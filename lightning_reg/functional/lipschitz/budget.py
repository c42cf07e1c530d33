"""A time limit for norms: norms that begin later are bounded in a cheaper way, and counted."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from lightning_reg.functional.lipschitz.rounding import UPWARDS, norm_upwards, precise


def now() -> float:
    """Return the seconds on a clock that never goes back."""
    return time.monotonic()


@dataclass
class Budget:
    """The time limit, and the number of norms beyond it."""

    seconds: float
    cheap: int = 0
    """Norms that were bounded in the cheaper way."""
    _start: float = field(default_factory=now)

    def used(self) -> float:
        """Return the seconds since the start."""
        return now() - self._start


_CURRENT: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def within(seconds: float) -> Iterator[Budget]:
    """Limit the time of the norms that are computed inside."""
    budget = Budget(seconds)
    token = _CURRENT.set(budget)
    try:
        yield budget
    finally:
        _CURRENT.reset(token)


def is_too_late() -> bool:
    """Tell whether the next norm must be cheap; if so, count it."""
    budget = _CURRENT.get()
    if budget is None or budget.used() <= budget.seconds:
        return False
    budget.cheap += 1
    return True


def norm_in_time(weight: Tensor) -> float:
    """Return the spectral norm of a matrix, rounded up, or the cheaper bound if it is too late."""
    return cheap_norm(weight) if is_too_late() else norm_upwards(weight)


def cheap_norm(weight: Tensor) -> float:
    r"""Return an upper bound of the norm of a matrix in two passes over it: :math:`\sqrt{\|W\|_1 \|W\|_\infty}`.

    Or the Frobenius norm, if that is less; NaN if the matrix is not finite.
    """
    if not weight.numel():
        return 0.0
    entries = precise(weight).abs()
    # The roots are taken separately, because products of huge or tiny numbers leave the range.
    schur = float(entries.sum(0).amax().sqrt() * entries.sum(1).amax().sqrt())
    largest = entries.amax()
    frobenius = float((entries / largest).norm() * largest) if bool(largest > 0) else 0.0
    if not math.isfinite(schur):
        return math.nan
    return min(schur, frobenius) * UPWARDS
