"""How many singular directions of a layer matter."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.penalties.counts import power_sums
from lightning_reg.functional.spectral.estimates import NormEstimates
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.precision import without_autocast
from lightning_reg.metrics.base import LayerMetric
from lightning_reg.metrics.reading import tensors_of, wholes


@final
class StableRank(LayerMetric):
    r"""The least stable rank of the layers, :math:`\min_l \|W_l\|_F^2 / \sigma(W_l)^2`.

    It is 1 for a matrix of rank one, and equals the rank if all nonzero singular values are equal. Unlike the rank, it
    does not jump with small singular values. Kernels are flattened to matrices with one row for each output. Stacked
    experts (experts x out x in) have the least of their matrices. The value is 0 for a layer of zeros, and NaN for a
    layer that is not finite, or before the first update.

    Exact up to rounding; with `iterations` an upper estimate, because :math:`\sigma` is then estimated from below.

    Args:
        iterations: Lanczos iterations for each layer and update, >= 1, see `SpectralNorm`. Default `None`: exact.
        **kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        TypeError: If `iterations` is not an int.
        ValueError: If `iterations` is below 1.

    Example:
        >>> import torch
        >>> rank = StableRank()
        >>> rank(torch.diag(torch.tensor([2.0, 2.0, 1.0])))
        tensor(2.2500)

    Reference:
        Rudelson & Vershynin, Sampling from Large Matrices, 2007, doi:10.1145/1255443.1255449.

    """

    def __init__(self, *, iterations: int | None = None, **kwargs: Any) -> None:
        super().__init__(torch.full((1,), torch.inf), **kwargs)
        self.iterations = None if iterations is None else _checks.count("iterations", iterations, 1)
        self._estimates = NormEstimates(1)

    @override
    @torch.no_grad()
    def statistics(self, layers: Sequence[Layer]) -> Tensor:
        parts_of_each = [layer.parts() for layer in wholes(layers)]
        parts = [part for own in parts_of_each for part in own]
        matrices = [Layer(part.name, part.matrix()) for part in parts]
        with without_autocast(matrices[0].tensor.device):
            if self.iterations is None:
                norms = torch.stack([matrix.norm_bound() for matrix in matrices])
            else:
                norms = self._estimates.advance(matrices, self.iterations)
        squares = power_sums(tensors_of(parts), 2)
        ranks = squares / norms.to(squares).square()
        found = torch.split(torch.where(squares == 0, 0, ranks), [len(own) for own in parts_of_each])
        return torch.stack([own.amin(0, keepdim=True) for own in found])

    @override
    def value(self, statistics: Tensor) -> Tensor:
        # The state is infinite before the first update.
        return statistics.squeeze(-1).nan_to_num(nan=torch.nan, posinf=torch.nan)

    @override
    def combine(self, statistics: Tensor) -> Tensor:
        return statistics.amin(0)
