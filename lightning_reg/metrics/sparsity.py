"""How sparse the weights are."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.penalties.counts import check_dim, entry_counts, zero_counts
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.metrics.base import LayerMetric
from lightning_reg.metrics.reading import tensors_of


@final
class Sparsity(LayerMetric):
    r"""The share of all entries with :math:`|w| \le t`, or of all slices that consist of such entries alone.

    Exact: entries are counted, and a NaN is no zero.

    Args:
        threshold: :math:`t`, >= 0; 0 counts exact zeros.
        dim: If given, count the slices along this dimension instead of the entries: with 0 output units and filters,
            with 1 input units and channels. Those are what can be removed from a network.
        **kwargs: Those of `torchmetrics.Metric`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `threshold` is negative; in `update`, if a weight has no dimension `dim`.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.0, 0.0], [0.0, 3.0], [1.0, 2.0], [4.0, 5.0]])
        >>> Sparsity()(weight)
        tensor(0.3750)
        >>> Sparsity(dim=0)(weight)
        tensor(0.2500)

    """

    def __init__(self, threshold: float = 0.0, *, dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(torch.zeros(2, dtype=torch.int64), **kwargs)
        self.threshold = _checks.non_negative("threshold", threshold)
        self.dim = _checks.dimension("dim", dim)

    @override
    def statistics(self, layers: Sequence[Layer]) -> Tensor:
        weights = tensors_of(layers)
        zeros = zero_counts(weights, self.threshold, check_dim(weights, self.dim))
        entries = torch.tensor(entry_counts(weights, self.dim)).to(zeros.device, non_blocking=True)
        return torch.stack([zeros, entries], dim=-1)

    @override
    def value(self, statistics: Tensor) -> Tensor:
        zeros, entries = statistics.unbind(-1)
        return zeros / entries
