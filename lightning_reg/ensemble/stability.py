"""Stability selection: which inputs are chosen again and again, on one half of the data after another."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.tensors.random import derived_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Label = TypeVar("Label")

_MAJORITY = 0.5
_MOST = 10**9


@dataclass(frozen=True, eq=False)
class StabilitySelection:
    """How often each input was selected, by strength; what `stability_selection` returns.

    Example:
        >>> import torch
        >>> choices = torch.tensor([[True, True], [True, False]])  # of two inputs, on the halves
        >>> result = stability_selection(lambda rows: choices[rows[0] % 2 :][:1], 10, num_halves=2)
        >>> result.frequencies.shape, result.selected()[0]
        (torch.Size([1, 2]), 0)

    """

    frequencies: Tensor
    """Share of the halves in which each input is selected, in [0, 1], shape (strengths, inputs)."""
    mean_selected: float
    """How many inputs a half selects, at any of its strengths, on average: q of the bound."""
    threshold: float
    """The share from which on an input counts as selected."""
    strengths: tuple[float, ...] | None = None
    """What the rows of `frequencies` belong to, if that is known."""
    names: tuple[str, ...] | None = None
    """Of the inputs, if they have any."""

    @property
    def highest(self) -> Tensor:
        """The largest share of each input over the strengths, shape (inputs,)."""
        return self.frequencies.amax(0)

    def selected(self, threshold: float | None = None) -> list[int]:
        """Return the inputs whose share reaches a threshold at some strength, the most frequent first.

        Args:
            threshold: In (0.5, 1]; `None` for the one that was asked for at first.

        Returns:
            Their numbers.

        Raises:
            TypeError: If `threshold` is no number.
            ValueError: If it is out of range.

        """
        least = self.threshold if threshold is None else _check_threshold(threshold)
        shares = self.highest.tolist()
        # Shares are quotients of whole numbers: 0.6 is reached by 30 of 50, whatever the last bit of a float says.
        chosen = [index for index, share in enumerate(shares) if share >= least - 1e-9]
        return sorted(chosen, key=lambda index: -shares[index])

    @property
    def false_positives_bound(self) -> float:
        r"""Most inputs that are expected to be selected in error, :math:`q^2 / ((2 \pi - 1) p)`, at the threshold."""
        return self.mean_selected**2 / ((2 * self.threshold - 1) * self.frequencies.shape[1])

    def plot(self) -> "Figure":
        """Draw the share of each input against the strength, the selected ones in colour and with their names.

        Returns:
            A figure of matplotlib, which has to be installed.

        """
        from matplotlib.figure import Figure  # not a dependency

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        positions = self.strengths or tuple(range(len(self.frequencies)))
        chosen = self.selected()
        for index in set(range(self.frequencies.shape[1])) - set(chosen):
            axes.plot(positions, self.frequencies[:, index].tolist(), color="0.8", linewidth=1)
        for index in chosen:
            axes.plot(positions, self.frequencies[:, index].tolist(), label=self._name(index))
        axes.axhline(self.threshold, color="0.4", linestyle="--", linewidth=1)
        if self.strengths and min(self.strengths) > 0:
            axes.set_xscale("log")
        if positions[0] > positions[-1]:
            axes.invert_xaxis()  # as the path was taken
        axes.set(
            xlabel="strength" if self.strengths else "position on the path", ylabel="share of halves", ylim=(0, 1.02)
        )
        axes.set_title(
            f"{len(chosen)} of {self.frequencies.shape[1]} inputs selected;"
            f" expected in error: at most {self.false_positives_bound:.2g}"
        )
        if chosen:
            axes.legend(fontsize="small")
        return figure

    def to_csv(self, path: str | Path) -> None:
        """Write a table with a row for each input: its name, the largest share, whether selected, and all shares.

        Args:
            path: The file, which is replaced.

        """
        chosen = set(self.selected())
        points = self.strengths or range(len(self.frequencies))
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["input", "highest", "selected", *points])
            for index, (highest, shares) in enumerate(
                zip(self.highest.tolist(), self.frequencies.T.tolist(), strict=True)
            ):
                writer.writerow([self._name(index), highest, int(index in chosen), *shares])

    def _name(self, index: int) -> str:
        return str(index) if self.names is None else self.names[index]


def stability_selection(  # noqa: PLR0913  # how to select, and what to call it
    fit: Callable[[list[int]], Any],
    num_samples: int,
    *,
    num_halves: int = 50,
    threshold: float = 0.6,
    strengths: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> StabilitySelection:
    r"""Select the inputs that a sparse model chooses on most halves of the data, at one strength at least.

    With :math:`\hat S_\lambda(I)` the inputs chosen at strength :math:`\lambda` on the samples :math:`I`, half of all,
    an input is selected if :math:`\max_\lambda P(j \in \hat S_\lambda(I)) \ge \pi`. The expected number of inputs that
    are selected in error is at most :math:`q^2 / ((2 \pi - 1) p)`, where :math:`q` is the mean number of the :math:`p`
    inputs that a half chooses at any strength: where `fit` goes to ever weaker strengths, q grows, and the bound says
    ever less. It holds if the inputs without effect are exchangeable, and chosen no more often than by chance.

    Halves come in pairs that have no sample in common, which has less variance than halves at random; with an odd
    number of samples, one is in neither.

    Args:
        fit: Called with the numbers of the samples of one half, a list. Fits a sparse model to them at each strength,
            the same in each call, and returns which inputs it chooses: booleans of shape (strengths, inputs), as
            `coefficients != 0` has them, of torch or NumPy.
        num_samples: How many samples there are, at least 4.
        num_halves: How many halves to fit, an even number of at least 2.
        threshold: :math:`\pi`, in (0.5, 1]; 0.6 to 0.9 are usual.
        strengths: What the rows of the result of `fit` belong to, for table and figure.
        names: Of the inputs, for table and figure.
        seed: Which halves, an int >= 0. The global random generators are left alone.

    Returns:
        The shares, what they select, and the bound.

    Raises:
        TypeError: If an argument is of the wrong kind, or `fit` returns no booleans.
        ValueError: If an argument is out of range, or what `fit` returns has the wrong shape.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> y = 3 * x[:, 1] - 2 * x[:, 3]
        >>> def fit(rows):  # those whose correlation with y is among the largest
        ...     shares = (x[rows].T @ y[rows]).abs() / len(rows)
        ...     return torch.stack([shares > 2, shares > 1])
        >>> result = stability_selection(fit, 200, strengths=[2.0, 1.0])
        >>> result.selected()
        [1, 3]

    Reference:
        Meinshausen & Buhlmann, Stability Selection, 2010, arXiv:0809.2932; for the pairs: Shah & Samworth, Variable
        Selection with Error Control, 2013, arXiv:1105.5578.

    """
    _checks.function("fit", fit, "callable as fit(rows), and return booleans of shape (strengths, inputs)")
    num_samples = _count("num_samples", num_samples, 4)
    if _count("num_halves", num_halves, 2) % 2:
        msg = f"`num_halves` must be even, for halves come in pairs, got {num_halves}."
        raise ValueError(msg)
    threshold = _check_threshold(threshold)
    points = _labels("strengths", strengths, _checks.number)
    labels = _labels("names", names, _text)
    generator = torch.Generator().manual_seed(derived_seed("halves", _checks.count("seed", seed, 0)))
    times = torch.zeros(0)
    found = 0
    for _ in range(num_halves // 2):
        order = torch.randperm(num_samples, generator=generator)
        for half in order[: num_samples // 2 * 2].chunk(2):
            chosen = _as_choice(fit(half.tolist()))
            if not len(times):
                _check_counts(chosen, strengths=points, names=labels)
                times = torch.zeros(chosen.shape, dtype=torch.float64)
            if chosen.shape != times.shape:
                msg = (
                    "`fit` must return the same strengths and inputs for each half, got shapes"
                    f" {tuple(times.shape)} and {tuple(chosen.shape)}."
                )
                raise ValueError(msg)
            times += chosen
            found += int(chosen.any(0).sum())
    return StabilitySelection(
        (times / num_halves).to(torch.float32),
        found / num_halves,
        threshold,
        points,
        labels,
    )


def _check_threshold(threshold: object) -> float:
    number = _checks.number("threshold", threshold)
    if not _MAJORITY < number <= 1:
        msg = f"`threshold` must be a share of halves in (0.5, 1], got {number:g}."
        raise ValueError(msg)
    return number


def _count(name: str, value: object, low: int) -> int:
    count = _checks.count(name, value, low)
    if count > _MOST:
        msg = f"`{name}` must be at most {_MOST:,}, got more."
        raise ValueError(msg)
    return count


def _labels(name: str, values: object, check: Callable[[str, object], Label]) -> tuple[Label, ...] | None:
    if values is None:
        return None
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Tensor):
        msg = f"`{name}` must be a list, got a {type(values).__name__}."
        raise TypeError(msg)
    return tuple(check(name, value) for value in values)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        msg = f"`{name}` must be text, got one of type {type(value).__name__}."
        raise TypeError(msg)
    return str(value)


def _as_choice(result: object) -> Tensor:
    try:
        chosen = torch.as_tensor(result).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"`fit` must return booleans of shape (strengths, inputs), got a {type(result).__name__}."
        raise TypeError(msg) from error
    if chosen.dtype != torch.bool:
        msg = f"`fit` must return booleans, got {chosen.dtype}. Of coefficients, return `coefficients != 0`."
        raise TypeError(msg)
    if chosen.ndim != 2 or not chosen.numel():  # noqa: PLR2004  # strengths and inputs
        msg = f"`fit` must return booleans of shape (strengths, inputs), got {tuple(chosen.shape)}."
        raise ValueError(msg)
    return chosen


def _check_counts(chosen: Tensor, **labels: tuple[object, ...] | None) -> None:
    for (name, values), what, count in zip(labels.items(), ("row", "column"), chosen.shape, strict=True):
        if values is not None and len(values) != count:
            msg = f"`{name}` must have one entry for each {what} that `fit` returns, {count}, got {len(values)}."
            raise ValueError(msg)
