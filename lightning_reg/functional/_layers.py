"""Layers as linear maps, for those who control or watch their norms."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from lightning_reg.functional._convolution import Sizes, convolution_of
from lightning_reg.functional._frequencies import certified_bound
from lightning_reg.functional._singular import reported
from lightning_reg.functional.spectral import matrix_norm


class LinearMap(NamedTuple):
    """A linear map between tensors without a batch dimension; both ways differentiable in the weight."""

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    input_shape: Sizes


def is_convolution(module: nn.Module) -> bool:
    """Tell whether `module` is a convolutional layer: the only ones whose norm depends on the size of the input."""
    return isinstance(module, nn.modules.conv._ConvNd)  # noqa: SLF001  # their common class has no public name


def layer_map(module: nn.Module, weight: Tensor, input_size: Sizes | None = None) -> LinearMap:
    """Return what `module` does with `weight`, without its bias: its adjoint is exact.

    Args:
        module: A convolutional layer, or any other whose `weight` is a matrix (Linear, Embedding, LSTM, attention).
        weight: The weight to use, which need not be the module's own. Half precision becomes float32.
        input_size: Spatial size of the input of a convolution.

    Raises:
        ValueError: If a convolution has no `input_size`.

    """
    weight = weight.to(reported(weight))
    layer = convolution_of(module, weight)
    if layer is None:
        return matrix_map(kernel_matrix(module, weight))
    if input_size is None:
        msg = "`input_size` must be given for a convolution."
        raise ValueError(msg)
    channels = weight.shape[0] if layer.transposed else weight.shape[1] * layer.groups
    return LinearMap(
        lambda image: layer.forward(weight, image[None], input_size)[0],
        lambda image: layer.adjoint(weight, image[None], input_size)[0],
        (channels, *input_size),
    )


def matrix_map(matrix: Tensor) -> LinearMap:
    """Return the product with `matrix`."""
    return LinearMap(lambda vector: matrix @ vector, lambda vector: matrix.mT @ vector, (matrix.shape[1],))


def kernel_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """Return `weight` as a matrix with a row for each output, as torch's own spectral normalization reshapes it."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)  # noqa: SLF001  # has no public name
    return (weight.transpose(0, 1) if transposed else weight).flatten(1)


def layer_bound(module: nn.Module, weight: Tensor, input_size: Sizes | None = None, grid: int = 16) -> Tensor:
    """Return `matrix_norm` (exact) or `conv_norm_bound` (from above) of what `module` does with `weight`, shape ()."""
    layer = convolution_of(module, weight)
    if layer is None:
        return matrix_norm(kernel_matrix(module, weight))
    return certified_bound(weight, layer, input_size, grid)
