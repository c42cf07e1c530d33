"""A time limit for norms: a norm that would exceed it is replaced by a cheaper bound, and counted.

The time of a norm is estimated before it begins. Its shape gives the number of operations, and the norms so far give
the speed. Without this estimate, one large layer could take many times the limit.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.rounding import UPWARDS, norm_upwards, norm_work, precise

_T = TypeVar("_T")
# Norms of less work do not show the speed, because calls take most of their time.
_TELLING = 1e9
# No machine needs more seconds for one operation. A norm that fits at this speed needs no measured speed.
_SLOWEST = 2e-9
# The number of rows of the square matrix whose norm measures the speed, in some hundredths of a second.
_TRIAL = 512


def now() -> float:
    """Return the seconds on a clock that never goes back."""
    return time.monotonic()


@dataclass
class Speed:
    """How fast this machine computes norms, from the norms that were timed."""

    seconds: float = 0.0
    work: float = 0.0

    def add(self, seconds: float, work: float) -> None:
        """Record the time of a norm."""
        self.seconds += seconds
        self.work += work

    def time_for(self, work: float) -> float:
        """Return the expected seconds. At least one norm must have been timed."""
        return work * self.seconds / self.work


@dataclass
class Budget:
    """The time limit, and the number of norms that would have exceeded it."""

    seconds: float
    speed: Speed = field(default_factory=Speed)
    cheap: int = 0
    """The number of norms that were replaced by a cheaper bound."""
    _start: float = field(default_factory=now)

    def used(self) -> float:
        """Return the seconds since the start."""
        return now() - self._start

    def run(self, exact: Callable[[], _T], cheap: Callable[[], _T], work: float, device: torch.device) -> _T:
        """Return the result of `exact` if it fits into the remaining time, and the result of `cheap` otherwise."""
        start = self.used()
        left = self.seconds - start
        if left >= 0 and work * _SLOWEST > left:
            start = self._try_out(device)
            left = self.seconds - start
        if left < 0 or (work * _SLOWEST > left and self.speed.time_for(work) > left):
            self.cheap += 1
            return cheap()
        result = exact()
        if work >= _TELLING:
            self.speed.add(self.used() - start, work)
        return result

    def _try_out(self, device: torch.device) -> float:
        """Measure the speed unless it is known, and return the seconds since the start."""
        start = self.used()
        if self.speed.work:
            return start
        trial = torch.linspace(-1, 1, _TRIAL**2, device=device).sin().view(_TRIAL, _TRIAL)
        norm_upwards(trial)
        self.speed.add(self.used() - start, norm_work(trial))
        return self.used()


_CURRENT: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def within(seconds: float, speed: Speed | None = None) -> Iterator[Budget]:
    """Limit the time of the norms computed inside. `speed` holds the norms timed so far, and records new ones."""
    budget = Budget(seconds, speed or Speed())
    token = _CURRENT.set(budget)
    try:
        yield budget
    finally:
        _CURRENT.reset(token)


def in_time(exact: Callable[[], _T], cheap: Callable[[], _T], work: float, device: torch.device) -> _T:
    """Return the result of `exact`, which takes about `work` operations, or the result of `cheap` if time is short."""
    budget = _CURRENT.get()
    return exact() if budget is None else budget.run(exact, cheap, work, device)


def norm_in_time(weight: Tensor) -> float:
    """Return the spectral norm of a matrix, rounded up, or a cheaper upper bound if time is short."""
    return in_time(lambda: norm_upwards(weight), lambda: cheap_norm(weight), norm_work(weight), weight.device)


def cheap_norm(weight: Tensor) -> float:
    r"""Return an upper bound of the spectral norm in two passes: :math:`\sqrt{\|W\|_1 \|W\|_\infty}`.

    If the Frobenius norm is smaller, return that. Return NaN if an entry is not finite.
    """
    if not weight.numel():
        return 0.0
    entries = precise(weight).abs()
    # Take the roots separately, because products of huge or tiny numbers overflow or underflow.
    schur = float(entries.sum(0).amax().sqrt() * entries.sum(1).amax().sqrt())
    largest = entries.amax()
    frobenius = float((entries / largest).norm() * largest) if bool(largest > 0) else 0.0
    if not math.isfinite(schur):
        return math.nan
    return min(schur, frobenius) * UPWARDS
