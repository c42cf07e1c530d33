"""Decide when the estimate of the largest strength, the smallest one that makes all selected weights zero, is final."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch

# The expected remaining change must be smaller than this share of the estimate.
_REMAINDER = 1e-7
_RECENT = 3
"""The largest of this many changes counts, because a single one may be small by chance."""
_WINDOW = 10
"""The number of epochs in which noise changes direction often, and a drift becomes visible."""
_TURNS = 3
_DRIFT = 0.25
_SHRINKS = 0.7
_AT_REST = 1e-6


@dataclass
class Search:
    """Estimates of the largest strength, made while the selected weights are held at zero and the others train.

    The other parameters approach their optimum, so the estimates converge. The search ends when the expected remaining
    change is negligible, or when the estimates only fluctuate, as with the noise of small batches.
    """

    limit: int
    """The largest number of epochs."""
    begun: dict[str, float] = field(default_factory=dict)
    """The strength at which the first gradient of the dense network would let each selected weight vanish."""
    estimates: list[float] = field(default_factory=list)
    """One estimate per epoch."""

    def settles(self, dtype: torch.dtype) -> bool:
        """Tell whether further epochs would not improve the last estimate."""
        steps = [abs(after - before) for before, after in pairwise(self.estimates)]
        return len(steps) >= _RECENT and (self._has_arrived(steps, torch.finfo(dtype).eps) or self._is_noise(steps))

    def is_at_rest(self, each: dict[str, float]) -> bool:
        """Tell whether zero is a stationary point: the gradient vanishes there, but not in the dense network."""
        lost = any(each.get(name) == 0 < before for name, before in self.begun.items())
        return lost or max(each.values()) <= _AT_REST * max(self.begun.values(), default=0.0)

    def _has_arrived(self, steps: list[float], eps: float) -> bool:
        """Tell whether the sum of the future changes, as a geometric series, is negligible."""
        now, before = max(steps[-_RECENT:]), max(steps[-2 * _RECENT : -_RECENT], default=0.0)
        if now <= 2 * eps * self.estimates[-1]:
            return True
        if now >= before:
            return False
        rate: float = (now / before) ** (1 / _RECENT)
        return now * rate / (1 - rate) <= max(_REMAINDER, eps) * self.estimates[-1]

    def _is_noise(self, steps: list[float]) -> bool:
        """Tell whether the estimates fluctuate without a drift and without a decay."""
        if len(steps) < 2 * _WINDOW:
            return False
        last = self.estimates[-1 - _WINDOW :]
        rises = [after > before for before, after in pairwise(last)]
        turns = sum(one != other for one, other in pairwise(rises))
        drifts = abs(last[-1] - last[0]) > _DRIFT * sum(steps[-_WINDOW:])
        now, before = self.estimates[-_WINDOW:], self.estimates[-2 * _WINDOW : -_WINDOW]
        return turns >= _TURNS and not drifts and max(now) - min(now) >= _SHRINKS * (max(before) - min(before))
