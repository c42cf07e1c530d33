"""Certified accuracy: the share of samples that are certified to stay correctly classified within a radius."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg._figures import new_figure
from lightning_reg.functional.lipschitz.certificates import certified_radius

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@final
class CertifiedAccuracy(Metric):
    r"""For each radius, the share of samples that are classified correctly and have a greater certified radius.

    This is a lower bound of the accuracy under any attack that moves each input by at most that radius, in the 2-norm.
    `functional.certified_radius` computes the certified radius of a sample. Samples accumulate over updates and ranks.

    Args:
        radii: One or more radii, each >= 0, in the unit of the input.
        **kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        TypeError: If `radii` is not a list of numbers.
        ValueError: If `radii` is empty, or if a radius is negative or not finite.

    Example:
        >>> import torch
        >>> accuracy = CertifiedAccuracy((0.1, 0.5))
        >>> logits, target = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])
        >>> accuracy(logits, target, torch.tensor([[0.0, 4.0], [4.0, 0.0]]))  # radii of 0.75 and 0.25
        tensor([1.0000, 0.5000])

    Reference:
        Tsuzuku et al., Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance for Deep Neural
        Networks, 2018, arXiv:1802.04034.

    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    certified: Tensor
    count: Tensor

    def __init__(self, radii: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.radii = check_radii("radii", radii)
        self.add_state("certified", torch.zeros(len(self.radii), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, logits: Tensor, target: Tensor, margin_bounds: Tensor) -> None:
        """Add samples.

        Args:
            logits: Outputs of a classifier in eval mode, shape (N, K).
            target: The true classes as whole numbers from 0 to K - 1, shape (N,).
            margin_bounds: The result of `functional.margin_bounds` for the classifier, shape (K, K).

        Raises:
            TypeError: If `target` is not a tensor of whole numbers, or if `logits` or `margin_bounds` is not a tensor
                of real floating-point numbers.
            ValueError: If the shapes do not match, if a class is not from 0 to K - 1, or if an entry of `margin_bounds`
                is negative.

        """
        radii = certified_radius(logits, margin_bounds)
        if not _holds_classes(target):
            kind = getattr(target, "dtype", type(target).__name__)
            msg = f"`target` must be a tensor of classes as whole numbers, got {kind}."
            raise TypeError(msg)
        if target.shape != radii.shape:
            msg = f"`target` must have one class for each of the {len(radii)} samples, got shape {tuple(target.shape)}."
            raise ValueError(msg)
        classes = logits.shape[1]
        if ((target < 0) | (target >= classes)).any():
            msg = (
                f"`target` must have classes from 0 to {classes - 1} for `logits` of {classes} classes, got"
                f" {target.min().item()} to {target.max().item()}. Leave other samples out."
            )
            raise ValueError(msg)
        right = logits.argmax(1) == target.to(logits.device)
        # Compare in double precision, because rounding could make one of `radii` smaller.
        limits = torch.tensor(
            self.radii, dtype=torch.float64, device=radii.device if radii.device.type != "mps" else "cpu"
        )
        hits = right[:, None].to(limits.device) & (radii.to(limits)[:, None] > limits)
        self.certified = self.certified + hits.sum(0).to(self.certified)
        self.count = self.count + len(radii)

    @override
    def compute(self) -> Tensor:
        """Return one share in [0, 1] for each radius, shape (R,) for R radii."""
        return self.certified / self.count

    @override
    def plot(self, val: Tensor | None = None, ax: "Axes | None" = None) -> "tuple[Figure, Axes]":
        """Draw the robustness curve: certified accuracy against the radius, in steps that never overstate it.

        Args:
            val: A result of `compute` or `forward`. Default: the current result of `compute`.
            ax: The axes to draw into. Default: the axes of a new figure.

        Returns:
            The figure and its axes, like the `plot` of every metric of torchmetrics.

        Raises:
            ImportError: If matplotlib is not installed.

        """
        if ax is None:
            ax = new_figure(6, 4).subplots()
            ax.set(xlabel="radius", ylabel="certified accuracy", ylim=(0, 1))
        shares = self.compute() if val is None else val
        points = sorted(zip(self.radii, shares.tolist(), strict=True))
        # Between two radii, the accuracy is at least the accuracy at the larger one.
        ax.plot(*zip(*points, strict=True), drawstyle="steps-pre")
        return cast("Figure", ax.figure), ax

    @override
    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        squeezed = super()._wrap_compute(compute)
        # torchmetrics turns a vector with one entry into a scalar.
        return functools.wraps(compute)(lambda *args, **kwargs: squeezed(*args, **kwargs).reshape(-1))


def _holds_classes(target: object) -> bool:
    return isinstance(target, Tensor) and not (target.is_floating_point() or target.is_complex())


def check_radii(name: str, radii: object) -> tuple[float, ...]:
    """Return radii as floats.

    Raises:
        TypeError: If `radii` is not a list of numbers.
        ValueError: If `radii` is empty, or if a radius is negative or not finite.

    """
    if not _checks.is_list(radii):
        msg = f"`{name}` must be a list of radii such as (0.1, 0.25), got {radii!r}."
        raise TypeError(msg)
    if not radii:
        msg = f"`{name}` must hold at least one radius, got {radii!r}."
        raise ValueError(msg)
    return tuple(_checks.non_negative(name, radius) for radius in radii)
