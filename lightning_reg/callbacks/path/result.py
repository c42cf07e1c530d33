"""The result of a path: strengths with their weights and scores, and the chosen strength."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lightning_reg._figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rule = Literal["best", "one_se"]
_MOST_LINES = 64


@dataclass(frozen=True)
class Point:
    """One strength of a path, at the end of its epochs."""

    strength: float
    nonzero: int
    score: float
    error: float
    weights: Mapping[str, Tensor]


class PathResult:
    """The strengths of a path so far, in training order.

    Args:
        points: The outcome of each strength.
        best: The index of the chosen strength.
        monitor: The name of the score; None if the path has no monitor.
        unit_dims: The dimension of the units in each weight, by name, if whole units vanish together.
        relaxed_score: The score after the epochs without the penalty; NaN if there are none.

    """

    def __init__(
        self,
        points: Sequence[Point],
        best: int,
        monitor: str | None = None,
        unit_dims: Mapping[str, int] | None = None,
        relaxed_score: float = math.nan,
    ) -> None:
        self._points = tuple(points)
        self._monitor = monitor
        self._unit_dims = dict(unit_dims or {})
        self.best = best
        """The index of the chosen strength."""
        self.relaxed_score = relaxed_score
        """The monitored value after `relaxed_epochs`, comparable with `scores[best]`; NaN if there is none."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strengths, in training order."""
        return tuple(point.strength for point in self._points)

    @property
    def nonzeros(self) -> tuple[int, ...]:
        """The number of nonzero entries in the selected weights, for each strength."""
        return tuple(point.nonzero for point in self._points)

    @property
    def scores(self) -> tuple[float, ...]:
        """The monitored value at the end of each strength; NaN if the path has no monitor."""
        return tuple(point.score for point in self._points)

    def __len__(self) -> int:
        return len(self._points)

    def weights(self, index: int) -> dict[str, Tensor]:
        """Return the selected weights at one strength, by name, on the CPU.

        Raises:
            IndexError: If there is no such strength.

        """
        return {name: weight.clone() for name, weight in self._points[index].weights.items()}

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table with the columns strength, nonzeros, score and best."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["strength", "nonzeros", "score", "best"])
            for index, point in enumerate(self._points):
                writer.writerow([repr(point.strength), point.nonzero, repr(point.score), index == self.best])

    def plot(self) -> "Figure":
        """Return a figure of the path: weights and scores against the strength, with the chosen strength marked.

        The figure draws one line per entry, or one line per unit (its norm) if whole units vanish together. If that
        takes more than 64 lines, it draws the number of nonzero entries, or units, in each weight.

        Raises:
            ImportError: If matplotlib is not installed.

        """
        has_scores = not all(math.isnan(score) for score in self.scores)
        figure = new_figure(7, 6 if has_scores else 4)
        axes = figure.subplots(2 if has_scores else 1, 1, sharex=True, squeeze=False)[:, 0]
        self._draw_weights(axes[0])
        if has_scores:
            axes[1].plot(self.strengths, self.scores, ".-", color="tab:gray")
            axes[1].set_ylabel(self._monitor or "score")
            if not math.isnan(self.relaxed_score):
                axes[1].plot(self.strengths[self.best], self.relaxed_score, "*", color="tab:orange", label="relaxed")
                axes[1].legend(loc="best", fontsize="small")
        for axis in axes:
            axis.axvline(self.strengths[self.best], color="tab:orange", linestyle="--", label="choice")
            if min(self.strengths) > 0:
                axis.set_xscale("log")
        axes[0].legend(loc="best", fontsize="small")
        axes[-1].set_xlabel("strength")
        return figure

    def _draw_weights(self, axis: "Axes") -> None:
        lines = {
            name: torch.stack([self._lines_of(name, point.weights[name]) for point in self._points])
            for name in self._points[0].weights
        }
        if sum(line.shape[1] for line in lines.values()) <= _MOST_LINES:
            for line in lines.values():
                axis.plot(self.strengths, line.numpy(), linewidth=1)
            axis.set_ylabel("norm of each unit" if self._unit_dims else "weight")
        else:
            for name, line in lines.items():
                axis.plot(self.strengths, line.count_nonzero(1).numpy(), linewidth=1, label=name)
            axis.set_ylabel("units left" if self._unit_dims else "entries left")

    def _lines_of(self, name: str, weight: Tensor) -> Tensor:
        if name not in self._unit_dims:
            return weight.float().flatten()
        lengths: Tensor = weight.float().movedim(self._unit_dims[name], 0).flatten(1).norm(dim=1)
        return lengths


def choice(points: Sequence[Point], rule: Rule, *, lower_is_better: bool, has_scores: bool) -> int:
    """Return the index of the best point, or of the largest strength within one standard error of the best score."""
    if not has_scores:
        return len(points) - 1
    losses = [point.score if lower_is_better else -point.score for point in points]
    losses = [math.inf if math.isnan(loss) else loss for loss in losses]
    # Among equal scores, take the largest strength.
    best = min(range(len(points)), key=lambda index: (losses[index], -points[index].strength))
    if rule == "best" or math.isnan(points[best].error):
        return best
    near = [index for index, loss in enumerate(losses) if loss <= losses[best] + points[best].error]
    return max(near, key=lambda index: points[index].strength)
