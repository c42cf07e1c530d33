"""The largest strength of a path: the least at which all chosen weights vanish."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch

# Of the estimate: what is left of its way to the limit must be smaller.
_REMAINDER = 1e-7
_RECENT = 3
"""Changes of which the largest counts, because one alone may be small by chance."""
_WINDOW = 10
"""Epochs in which noise turns often, and a drift gets somewhere."""
_TURNS = 3
_DRIFT = 0.25
_SHRINKS = 0.7
_AT_REST = 1e-6


@dataclass
class Search:
    """What is known of the largest strength while the chosen weights are held at zero and the others train.

    The others approach their optimum, so that the estimates converge. The search is over when what is left of their way
    is negligible, or when they only go to and fro, as they do with the noise of small batches.
    """

    limit: int
    """The most epochs."""
    begun: dict[str, float] = field(default_factory=dict)
    """The strength at which each chosen weight would vanish by the first gradient of the dense network."""
    estimates: list[float] = field(default_factory=list)

    def settles(self, dtype: torch.dtype) -> bool:
        """Tell whether the last estimate is as good as it gets."""
        steps = [abs(after - before) for before, after in pairwise(self.estimates)]
        return len(steps) >= _RECENT and (self._has_arrived(steps, torch.finfo(dtype).eps) or self._is_noise(steps))

    def is_at_rest(self, each: dict[str, float]) -> bool:
        """Tell whether zero is a resting place: no gradient there, though the dense network has one."""
        lost = any(each.get(name) == 0 < before for name, before in self.begun.items())
        return lost or max(each.values()) <= _AT_REST * max(self.begun.values(), default=0.0)

    def _has_arrived(self, steps: list[float], eps: float) -> bool:
        """Tell whether the steps to come, a geometric series, are negligible together."""
        now, before = max(steps[-_RECENT:]), max(steps[-2 * _RECENT : -_RECENT], default=0.0)
        if now <= 2 * eps * self.estimates[-1]:
            return True
        if now >= before:
            return False
        rate: float = (now / before) ** (1 / _RECENT)
        return now * rate / (1 - rate) <= max(_REMAINDER, eps) * self.estimates[-1]

    def _is_noise(self, steps: list[float]) -> bool:
        """Tell whether the estimates get nowhere, and do not come to rest either, as a decaying oscillation does."""
        if len(steps) < 2 * _WINDOW:
            return False
        last = self.estimates[-1 - _WINDOW :]
        rises = [after > before for before, after in pairwise(last)]
        turns = sum(one != other for one, other in pairwise(rises))
        drifts = abs(last[-1] - last[0]) > _DRIFT * sum(steps[-_WINDOW:])
        now, before = self.estimates[-_WINDOW:], self.estimates[-2 * _WINDOW : -_WINDOW]
        return turns >= _TURNS and not drifts and max(now) - min(now) >= _SHRINKS * (max(before) - min(before))
