"""Stability selection: which inputs a sparse model chooses on most halves of the data."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg._figures import new_figure
from lightning_reg.functional.tensors.random import derived_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Label = TypeVar("Label")

_MAJORITY = 0.5
_MOST = 10**9


@dataclass(frozen=True, eq=False)
class StabilitySelection:
    """How often each input was selected at each strength: the result of `stability_selection`.

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
    """The mean number of inputs that a half selects at any strength: q of the bound."""
    threshold: float
    """The least share of the halves that makes an input selected."""
    strengths: tuple[float, ...] | None = None
    """The strength of each row of `frequencies`, if known."""
    names: tuple[str, ...] | None = None
    """The names of the inputs, if known."""

    @property
    def highest(self) -> Tensor:
        """The largest share of each input over the strengths, shape (inputs,)."""
        return self.frequencies.amax(0)

    def selected(self, threshold: float | None = None) -> list[int]:
        """Return the inputs whose share reaches a threshold at any strength, most frequent first.

        Args:
            threshold: In (0.5, 1]; `None` for the `threshold` given to `stability_selection`.

        Returns:
            The indices of the inputs.

        Raises:
            TypeError: If `threshold` is not a number.
            ValueError: If it is out of range.

        """
        least = self.threshold if threshold is None else _check_threshold(threshold)
        shares = self.highest.tolist()
        # Shares are ratios of whole numbers: 30 of 50 reach 0.6, even if the floats differ in the last bit.
        chosen = [index for index, share in enumerate(shares) if share >= least - 1e-9]
        return sorted(chosen, key=lambda index: -shares[index])

    @property
    def false_positives_bound(self) -> float:
        r"""The bound on the expected number of inputs selected in error, :math:`q^2 / ((2 \pi - 1) p)`."""
        return self.mean_selected**2 / ((2 * self.threshold - 1) * self.frequencies.shape[1])

    def plot(self) -> "Figure":
        """Draw the share of each input against the strength; selected inputs are coloured and named.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: If matplotlib is not installed.

        """
        figure = new_figure(8, 4.5)
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
            axes.invert_xaxis()  # in the order of the path
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
        """Write a table with a row for each input: name, largest share, 1 if selected, and the share at each strength.

        Args:
            path: The file. An existing file is replaced.

        """
        chosen = set(self.selected())
        points = self.strengths or range(len(self.frequencies))
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["input", "highest", "selected", *points])
            for index, (highest, shares) in enumerate(
                zip(self.highest.tolist(), self.frequencies.T.tolist(), strict=True)
            ):
                writer.writerow([self._name(index), highest, int(index in chosen), *shares])

    def _name(self, index: int) -> str:
        return str(index) if self.names is None else self.names[index]


def stability_selection(  # noqa: PLR0913  # settings of the selection, and labels
    fit: Callable[[list[int]], Any],
    num_samples: int,
    *,
    num_halves: int = 50,
    threshold: float = 0.6,
    strengths: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> StabilitySelection:
    r"""Select the inputs that a sparse model chooses on most halves of the data, at any strength.

    Let :math:`\hat S_\lambda(I)` be the inputs chosen at strength :math:`\lambda` on a random half :math:`I` of the
    samples. Input j is selected if :math:`\max_\lambda P(j \in \hat S_\lambda(I)) \ge \pi`. The expected number of
    inputs selected in error is at most :math:`q^2 / ((2 \pi - 1) p)`, where :math:`q` is the mean number of the
    :math:`p` inputs that a half chooses at any strength. Weaker strengths in `fit` raise q and so loosen the bound. It
    holds if the inputs without effect are exchangeable, and `fit` chooses them no more often than by chance.

    Halves come in pairs without a common sample, which has less variance than independent halves. If the number of
    samples is odd, one sample is in neither half.

    Args:
        fit: A function that gets the list of sample indices of one half. It fits a sparse model to these samples at
            each strength, with the same strengths in each call. It returns which inputs the model chooses: booleans of
            shape (strengths, inputs), such as `coefficients != 0`, as a torch tensor or a NumPy array.
        num_samples: The number of samples, at least 4.
        num_halves: The number of halves to fit, an even number >= 2.
        threshold: :math:`\pi`, in (0.5, 1]; 0.6 to 0.9 are usual.
        strengths: The strength of each row that `fit` returns, for table and figure.
        names: The names of the inputs, for table and figure.
        seed: Determines the halves, an int >= 0. The global random generators do not change.

    Returns:
        The shares, the selected inputs, and the bound.

    Raises:
        TypeError: If an argument is of the wrong kind, or `fit` does not return booleans.
        ValueError: If an argument is out of range, or the result of `fit` has the wrong shape.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> y = 3 * x[:, 1] - 2 * x[:, 3]
        >>> def fit(rows):  # inputs with a large covariance with y
        ...     shares = (x[rows].T @ y[rows]).abs() / len(rows)
        ...     return torch.stack([shares > 2, shares > 1])
        >>> result = stability_selection(fit, 200, strengths=[2.0, 1.0])
        >>> result.selected()
        [1, 3]

    Reference:
        Meinshausen & Buhlmann, Stability Selection, 2010, arXiv:0809.2932. The pairs: Shah & Samworth, Variable
        Selection with Error Control, 2013, arXiv:1105.5578.

    """
    _checks.function("fit", fit, "callable as fit(rows), and return booleans of shape (strengths, inputs)")
    num_samples = _count("num_samples", num_samples, 4)
    if _count("num_halves", num_halves, 2) % 2:
        msg = f"`num_halves` must be even, because halves come in pairs, got {num_halves}."
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
        msg = f"`{name}` must hold strings, got a {type(value).__name__}."
        raise TypeError(msg)
    return str(value)


def _as_choice(result: object) -> Tensor:
    try:
        chosen = torch.as_tensor(result).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"`fit` must return booleans of shape (strengths, inputs), got a {type(result).__name__}."
        raise TypeError(msg) from error
    if chosen.dtype != torch.bool:
        msg = f"`fit` must return booleans, got {chosen.dtype}. If you have coefficients, return `coefficients != 0`."
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
