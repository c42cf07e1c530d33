"""How much a network stretches real samples."""

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

    A lower bound of the Lipschitz constant of :math:`f` in the 2-norm, also where the norm of a sample is an estimate
    from below; see `functional.jacobian_norm`, also for what kinks do to it. `functional.lipschitz_bound` is on the
    other side.

    Args:
        reduction: `"max"` for the bound, or `"mean"` over samples for how much a typical one is stretched: from below,
            too, and no bound of anything. Both in one `MetricCollection` cost as much as one. Default `"max"`.
        iterations: Lanczos iterations where a sample has more than 32 inputs and outputs, >= 1.
        **kwargs: Those of `torchmetrics.Metric`.

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
            fn: From samples, shape (batch, ...), to their outputs, shape (batch, ...), each row from its own row alone.
                A module, or a method of one, is evaluated in eval mode.
            x: Samples of floating-point numbers, shape (batch, ...).

        """
        norms = jacobian_norm(fn, x, iterations=self.iterations).to(self.largest)
        self.largest = torch.cat([self.largest.reshape(1), norms]).amax()
        self.total = self.total + norms.sum()
        self.count = self.count + len(norms)

    @override
    def compute(self) -> Tensor:
        """Return the largest norm, or the mean, of all samples, shape (); 0 or NaN if there were none."""
        return self.largest if self.reduction == "max" else self.total / self.count
