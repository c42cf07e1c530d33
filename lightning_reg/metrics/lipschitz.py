"""How much a network stretches changes of real samples."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.lipschitz.jacobian import jacobian_norm


@final
class LipschitzLowerBound(Metric):
    r"""The largest norm of the input Jacobian over samples, :math:`\max_i \|J_f(x_i)\|_2`, over updates and ranks.

    A lower bound of the Lipschitz constant of :math:`f` in the 2-norm, because each norm is exact or an estimate from
    below. `functional.jacobian_norm` describes the estimate and the effect of kinks. `functional.lipschitz_bound` is an
    upper bound.

    Args:
        reduction: `"max"` for the bound, or `"mean"` for the mean over samples, which bounds nothing. Both in one
            `MetricCollection` cost as much as one. Default `"max"`.
        iterations: Lanczos iterations for samples with more than 32 inputs and outputs, >= 1.
        **kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> bound, mean = LipschitzLowerBound(), LipschitzLowerBound("mean")
        >>> samples = torch.tensor([[1.0], [3.0]])
        >>> bound(torch.square, samples), mean(torch.square, samples)
        (tensor(6.), tensor(4.))

    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    largest: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, reduction: str = "max", *, iterations: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reduction = _checks.one_of("reduction", reduction, ("max", "mean"))
        self.iterations = _checks.count("iterations", iterations, 1)
        self.add_state("largest", torch.zeros(()), dist_reduce_fx="max")
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Add samples.

        Args:
            fn: Maps samples, shape (batch, ...), to outputs, shape (batch, ...); each output depends on its own sample
                only. A module, or a method of one, is evaluated in eval mode.
            x: Samples of floating-point numbers, shape (batch, ...).

        """
        norms = jacobian_norm(fn, x, iterations=self.iterations).to(self.largest)
        self.largest = torch.cat([self.largest.reshape(1), norms]).amax()
        self.total = self.total + norms.sum()
        self.count = self.count + len(norms)

    @override
    def compute(self) -> Tensor:
        """Return the largest or the mean norm of all samples, shape (); without samples 0 or NaN."""
        return self.largest if self.reduction == "max" else self.total / self.count
