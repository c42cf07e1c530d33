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
    """Where on a path the fit is."""

    scores: Scores | None
    relaxed_epochs: int
    """How many epochs without the penalty follow the last strength."""
    strengths: list[float] = field(default_factory=list)
    """In the order in which they are visited; empty as long as the largest is not known."""
    position: int = 0
    epochs: int = 0
    """The epochs that the current strength, or the search, or the relaxed solution, has had."""
    is_solved: bool = False
    """Whether the residual was within the tolerance in the last epoch."""
    solved: int = 0
    """How many strengths in a row have ended within the tolerance."""
    owes_start: bool = False
    """Whether a strength has ended, and the next has not begun."""
    owes_end: bool = False
    """Whether the last batch of an epoch has ended, and the epoch has not."""
    names: dict[Tensor, str] = field(default_factory=dict)
    """The chosen weights that are trained."""
    mean: MeanGradient = field(default_factory=MeanGradient)
    points: list[Point] = field(default_factory=list)
    search: Search | None = None
    start: Snapshot | None = None
    """The module before the search."""
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """The module at strengths that may be the choice."""
    best: int = 0
    is_relaxed: bool = False
    """Whether the choice trains on without the penalty."""
    relaxed_score: float = math.nan
    is_new: bool = True
    """Whether no step of this fit has been logged yet."""

    @property
    def has_all_points(self) -> bool:
        """Whether the last strength has had its time."""
        return bool(self.strengths) and self.position == len(self.strengths)

    @property
    def is_over(self) -> bool:
        """Whether the fit may end."""
        return self.has_all_points and self.epochs >= self.relaxed_epochs

    @property
    def strength(self) -> float:
        """The current strength, once the largest is known."""
        return 0.0 if self.has_all_points else self.strengths[self.position]
