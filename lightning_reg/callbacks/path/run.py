"""The state of a path during one fit."""

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
    strengths: list[float] = field(default_factory=list)
    """In the order in which they are visited; empty as long as the largest is not known."""
    position: int = 0
    epochs: int = 0
    """The epochs that the current strength, or the search, has had."""
    is_solved: bool = False
    """Whether the residual was within the tolerance in the last epoch."""
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
    is_new: bool = True
    """Whether no step of this fit has been logged yet."""

    @property
    def is_over(self) -> bool:
        """Whether the last strength has had its time."""
        return bool(self.strengths) and self.position == len(self.strengths)
