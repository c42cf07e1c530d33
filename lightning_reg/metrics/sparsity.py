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
    r"""The share of entries with :math:`|w| \le t`, or of slices with such entries only.

    Exact: entries are counted, and NaN does not count as zero.

    Args:
        threshold: :math:`t`, >= 0; 0 counts exact zeros.
        dim: If given, count the slices along this dimension instead of the entries. Slices of zeros can be removed from
            a network. In the layers of a module, 0 means output units and filters, 1 input units and channels,
            whatever the layout of the weights; see `GroupLassoPenalty`.
        **kwargs: Keyword arguments of `torchmetrics.Metric`.

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
        check_dim(weights, self.dim)
        dims = None if self.dim is None else [layer.dims[self.dim] if layer.dims else self.dim for layer in layers]
        zeros = zero_counts(weights, self.threshold, dims)
        entries = torch.tensor(entry_counts(weights, dims)).to(zeros.device, non_blocking=True)
        return torch.stack([zeros, entries], dim=-1)

    @override
    def value(self, statistics: Tensor) -> Tensor:
        zeros, entries = statistics.unbind(-1)
        return zeros / entries
