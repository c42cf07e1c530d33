"""How much the layers stretch their inputs."""

from collections.abc import Sequence
from itertools import compress
from typing import Any, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.spectral.estimates import NormEstimates
from lightning_reg.functional.spectral.followed.norms import FollowedNorms
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.precision import without_autocast
from lightning_reg.metrics.base import LayerMetric
from lightning_reg.metrics.reading import wholes


@final
class SpectralNorm(LayerMetric):
    r"""The largest spectral norm of the layers, :math:`\max_l \sigma(W_l)`: how much one layer stretches at most.

    The value is exact, an upper bound or a lower estimate:

    - Matrices (of Linear, Embedding, LSTM, attention; plain tensors): exact up to rounding; with `iterations` a lower
      estimate. A vector counts as one column.
    - Convolutions in a module: an upper bound for images of any size (`functional.conv_norm_bound`); with `iterations`
      a lower estimate of the norm on zero-padded images of `input_size` pixels, or of any size.
    - Stacked experts (experts x out x in) in a module: the largest norm among their matrices.
    - Tensors of more than two dimensions: the norm of the kernel reshaped to a matrix, because the kernel alone does
      not determine the convolution. It is below the norm of most convolutions.

    With `iterations`, each update continues from the singular vectors of the last one: cheap enough to watch during
    training. Updates match layers by name in a module, and by position among tensors. The vectors are not part of the
    metric's state: `reset` keeps them, and checkpoints do not contain them.

    Args:
        iterations: Lanczos iterations for each layer and update, >= 1; the first update takes four times as many. Five
            are usually within 0.5 % when weights have moved for some tens of steps. Default `None`: exact, or bounds.
        input_size: Pixels along each dimension of the images for which convolutions are estimated, >= 1. `"any"`
            estimates the norm over images of any size, which is a little larger, over frequencies: within 2 %,
            and cheaper for large kernels. It is the norm with zero padding, and too low for padding that copies
            pixels. Default 16.
        **kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        TypeError: If an argument is not an int.
        ValueError: If an argument is below 1.

    Example:
        >>> import torch
        >>> norm = SpectralNorm()
        >>> norm(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        tensor(5.)

    Reference:
        Golub & Kahan, Calculating the Singular Values and Pseudo-Inverse of a Matrix, 1965, doi:10.1137/0702016.

    """

    def __init__(self, *, iterations: int | None = None, input_size: int | Literal["any"] = 16, **kwargs: Any) -> None:
        super().__init__(torch.zeros(1), **kwargs)
        self.iterations = None if iterations is None else _checks.count("iterations", iterations, 1)
        self.input_size = input_size if input_size == "any" else _checks.count("input_size", input_size, 1)
        self._estimates = NormEstimates(1 if self.input_size == "any" else self.input_size)
        self._followed = FollowedNorms()

    @override
    @torch.no_grad()
    def statistics(self, layers: Sequence[Layer]) -> Tensor:
        layers = wholes(layers)
        with without_autocast(layers[0].tensor.device):
            if self.iterations is None:
                norms = _together([layer.norm_bound() for layer in layers])
            else:
                norms = self._estimated(layers, self.iterations)
        return norms.unsqueeze(-1)

    def _estimated(self, layers: Sequence[Layer], iterations: int) -> Tensor:
        is_followed = [self.input_size == "any" and layer.convolution() is not None for layer in layers]
        convolutions = list(compress(layers, is_followed))
        others = [layer for layer, followed in zip(layers, is_followed, strict=True) if not followed]
        rounds = max(1, iterations // 2)  # each makes two products with the kernel and two with its adjoint
        norms = [found.sigma for found in self._followed.advance(convolutions, rounds)]
        if not others:
            return _together(norms)
        parts = [layer.parts() for layer in others]
        estimates = self._estimates.advance([part for own in parts for part in own], iterations)
        if len(estimates) > len(others):
            estimates = torch.stack([own.amax() for own in torch.split(estimates, [len(own) for own in parts])])
        if not convolutions:
            return estimates
        of_convolutions, of_others = iter(norms), iter(estimates.unbind())
        return _together([next(of_convolutions if followed else of_others) for followed in is_followed])

    @override
    def value(self, statistics: Tensor) -> Tensor:
        return statistics.squeeze(-1)

    @override
    def combine(self, statistics: Tensor) -> Tensor:
        return statistics.amax(0)


def _together(norms: Sequence[Tensor]) -> Tensor:
    return torch.stack([norm.to(norms[0].device) for norm in norms])
