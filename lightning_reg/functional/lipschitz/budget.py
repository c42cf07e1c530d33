"""A time limit for norms: norms that would exceed it are bounded in a cheaper way, and counted.

The time of a norm is known before it begins: its work, a count of operations from its shape, at the speed of the norms
so far. Without this, one large layer could take many times the limit.
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
# Norms of less work say nothing about the speed, because calls take most of their time.
_TELLING = 1e9
# Seconds for each operation that no machine exceeds: only norms that might not fit need a measured speed.
_SLOWEST = 2e-9
# The side of a matrix whose norm tells the speed; it takes some hundredths of a second.
_TRIAL = 512


def now() -> float:
    """Return the seconds on a clock that never goes back."""
    return time.monotonic()


@dataclass
class Speed:
    """How fast this machine computes norms, from those that were timed."""

    seconds: float = 0.0
    work: float = 0.0

    def add(self, seconds: float, work: float) -> None:
        """Learn from a norm."""
        self.seconds += seconds
        self.work += work

    def time_for(self, work: float) -> float:
        """Return the expected seconds; only if a norm was timed."""
        return work * self.seconds / self.work


@dataclass
class Budget:
    """The time limit, and the number of norms beyond it."""

    seconds: float
    speed: Speed = field(default_factory=Speed)
    cheap: int = 0
    """Norms that were bounded in the cheaper way."""
    _start: float = field(default_factory=now)

    def used(self) -> float:
        """Return the seconds since the start."""
        return now() - self._start

    def run(self, exact: Callable[[], _T], cheap: Callable[[], _T], work: float, device: torch.device) -> _T:
        """Return the result of `exact` if it fits into the time that is left, else that of `cheap`."""
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
    """Limit the time of the norms that are computed inside; `speed` is the one known so far, and learns from them."""
    budget = Budget(seconds, speed or Speed())
    token = _CURRENT.set(budget)
    try:
        yield budget
    finally:
        _CURRENT.reset(token)


def in_time(exact: Callable[[], _T], cheap: Callable[[], _T], work: float, device: torch.device) -> _T:
    """Return the result of `exact`, which takes about `work` operations, or of `cheap` if the time does not suffice."""
    budget = _CURRENT.get()
    return exact() if budget is None else budget.run(exact, cheap, work, device)


def norm_in_time(weight: Tensor) -> float:
    """Return the spectral norm of a matrix, rounded up, or the cheaper bound if the time does not suffice."""
    return in_time(lambda: norm_upwards(weight), lambda: cheap_norm(weight), norm_work(weight), weight.device)


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
