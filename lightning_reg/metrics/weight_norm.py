"""How large the weights are."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.penalties.counts import power_norms, scaled_norm
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.metrics.base import LayerMetric
from lightning_reg.metrics.reading import tensors_of


@final
class WeightNorm(LayerMetric):
    r"""The p-norm of all weights as one long vector, :math:`(\sum |w|^p)^{1/p}`.

    With `p=2`, the norm of one matrix is its Frobenius norm, an upper bound of its spectral norm. Exact up to rounding.

    Args:
        p: Order of the norm, >= 1 and finite.
        **kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is below 1 or not finite.

    Example:
        >>> import torch
        >>> norm = WeightNorm()
        >>> norm.update([torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0], [4.0]])])
        >>> norm.compute()
        tensor(5.)

    """

    def __init__(self, p: float = 2, **kwargs: Any) -> None:
        super().__init__(torch.zeros(1), **kwargs)
        self.p = _checks.in_range("p", p, 1, math.inf)

    @override
    def statistics(self, layers: Sequence[Layer]) -> Tensor:
        return power_norms(tensors_of(layers), self.p).unsqueeze(-1)

    @override
    def value(self, statistics: Tensor) -> Tensor:
        return statistics.squeeze(-1)

    @override
    def combine(self, statistics: Tensor) -> Tensor:
        return scaled_norm(statistics, self.p).unsqueeze(0)
