"""The largest strength of a path: the least at which all chosen weights vanish."""

import math
from dataclasses import dataclass, field

import torch

_PATIENCE = 10
"""Epochs in which the estimate has to settle further, before the rest of its changes counts as noise."""
_PROGRESS = 0.95
_AT_REST = 1e-6


@dataclass
class Search:
    """What is known of the largest strength while the chosen weights are held at zero and the others train.

    The others approach their optimum, so that the estimates converge. The search is over when an epoch changes the
    estimate no more than rounding does, or when the changes have stopped to shrink: the batches are noisy then.
    """

    begun: list[float] = field(default_factory=list)
    """The strength at which each chosen weight would vanish by the first gradient of the dense network."""
    estimates: list[float] = field(default_factory=list)
    least_change: float = math.inf
    stale: int = 0

    def add(self, each: list[float]) -> None:
        """Add the strengths that an epoch has given for each weight."""
        estimate = max(each)
        if self.estimates:
            change = abs(estimate - self.estimates[-1])
            self.stale = 0 if change < _PROGRESS * self.least_change else self.stale + 1
            self.least_change = min(change, self.least_change)
        self.estimates.append(estimate)

    def is_over(self, dtype: torch.dtype) -> bool:
        """Tell whether the last estimate is as good as it gets."""
        settled = self.least_change <= 2 * torch.finfo(dtype).eps * self.estimates[-1]
        return bool(self.estimates) and (settled or self.stale >= _PATIENCE)

    def is_at_rest(self, each: list[float]) -> bool:
        """Tell whether zero is a resting place: no gradient there, though the dense network has one."""
        lost = any(now == 0 < before for now, before in zip(each, self.begun, strict=True))
        return lost or max(each) <= _AT_REST * max(self.begun, default=0.0)
