"""The state of a path during one fit."""

import math
from dataclasses import dataclass, field

from torch import Tensor

from lightning_reg.callbacks.path.gradients import MeanGradient
from lightning_reg.callbacks.path.result import Point
from lightning_reg.callbacks.path.scores import Scores
from lightning_reg.callbacks.path.search import Search
from lightning_reg.callbacks.path.snapshots import Snapshot


@dataclass
class PathRun:
    """The position of a fit on its path."""

    scores: Scores | None
    relaxed_epochs: int
    """The number of epochs without the penalty, after the last strength."""
    strengths: list[float] = field(default_factory=list)
    """The strengths in training order; empty until the largest is known."""
    position: int = 0
    """The index of the current strength."""
    epochs: int = 0
    """The number of epochs so far: of the search, the current strength, or the relaxed solution."""
    is_solved: bool = False
    """Whether the residual was within the tolerance in the last epoch."""
    solved: int = 0
    """The number of strengths in a row that ended within the tolerance."""
    owes_start: bool = False
    """Whether a strength has ended, and the next one has not started."""
    owes_end: bool = False
    """Whether the last batch of an epoch has ended, and the epoch has not."""
    names: dict[Tensor, str] = field(default_factory=dict)
    """The names of the selected weights that an optimizer trains."""
    others: dict[Tensor, str] = field(default_factory=dict)
    """Names of the other weights that an optimizer trains, by their place in the optimizers."""
    mean: MeanGradient = field(default_factory=MeanGradient)
    points: list[Point] = field(default_factory=list)
    search: Search | None = None
    start: Snapshot | None = None
    """The module before the search."""
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """The module at each strength that may be chosen, by index."""
    best: int = 0
    is_relaxed: bool = False
    """Whether training without the penalty has begun."""
    relaxed_score: float = math.nan
    is_new: bool = True
    """Whether no step of this fit has been logged yet."""

    @property
    def has_all_points(self) -> bool:
        """Whether the last strength has ended."""
        return bool(self.strengths) and self.position == len(self.strengths)

    @property
    def is_over(self) -> bool:
        """Whether the path is complete, so the fit can end."""
        return self.has_all_points and self.epochs >= self.relaxed_epochs

    @property
    def strength(self) -> float:
        """The current strength; 0 after the last one. Undefined until the largest is known."""
        return 0.0 if self.has_all_points else self.strengths[self.position]
