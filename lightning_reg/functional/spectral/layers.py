"""Layers as linear maps, to control or measure their norms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_reg.functional.spectral.convolution import Convolution, Sizes, coarse_steps, convolution_of
from lightning_reg.functional.spectral.frequencies import GRID, certified_bound
from lightning_reg.functional.spectral.norms import matrix_norm
from lightning_reg.functional.tensors.precision import reported

_MATRIX_NDIM = 2


@dataclass(frozen=True)
class Layer:
    """A weight at one moment."""

    name: str
    tensor: Tensor
    module: nn.Module | None = None
    """The module in which it sits, if known."""
    dims: tuple[int, ...] | None = None
    """The dimensions of the tensor, beginning with the dimension of the outputs; `None` if they are in this order."""
    is_stack: bool = False
    """Whether the tensor is a stack of matrices, experts x out x in, each with inputs of its own."""

    def convolution(self) -> Convolution | None:
        """Return the convolution whose kernel the weight is, if it is one."""
        module = self.module
        if not isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001  # their common class has no public name
            return None
        return convolution_of(module, self.tensor) if self.tensor.ndim == len(module.kernel_size) + 2 else None

    def matrix(self) -> Tensor:
        """Return the weight as a matrix with a row for each output, as torch's own spectral normalization reshapes it.

        A vector is one column. Half precision becomes float32, a complex matrix the real one of the same norm.
        """
        weight = self.tensor
        if weight.ndim < _MATRIX_NDIM:
            weight = weight.reshape(-1, 1)
        matrix = weight.permute(self._rows_first()).flatten(1) if weight.ndim > _MATRIX_NDIM else weight
        return _as_real(matrix)

    def matrices(self) -> Tensor:
        """Return `matrix()` as the only one, or the matrices of a stack, shape (matrices, rows, columns)."""
        return _as_real(self.tensor) if self.is_stack else self.matrix()[None]

    def from_matrices(self, matrices: Tensor) -> Tensor:
        """Return matrices like `matrices()`, but for their dtype, in the shape of the weight."""
        return matrices.view(self.tensor.shape) if self.is_stack else self.from_matrix(matrices[0])

    def parts(self) -> list["Layer"]:
        """Return the matrices of a stack as layers, or the layer itself."""
        if not self.is_stack:
            return [self]
        return [Layer(f"{self.name}[{index}]", matrix) for index, matrix in enumerate(self.tensor)]

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Return a matrix like `matrix()`, but for its dtype, in the shape of the weight."""
        shape, order = self.tensor.shape, self._rows_first()
        if not self.is_reordered:
            return matrix.view(shape)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return matrix.view([shape[dim] for dim in order]).permute(inverse)

    @property
    def is_reordered(self) -> bool:
        """Whether `matrix()` is not a view of the weight: its rows lie along a dimension other than the first."""
        return not self.is_stack and self.tensor.ndim > _MATRIX_NDIM and self._rows_first()[0] != 0

    def _rows_first(self) -> tuple[int, ...]:
        """Return the dimensions of the tensor, beginning with the dimension of the rows of its matrix."""
        order = tuple(range(self.tensor.ndim))
        if isinstance(self.module, nn.modules.conv._ConvTransposeNd):  # noqa: SLF001  # has no public name
            return 1, 0, *order[2:]
        return self.dims or order

    def norm_bound(self, input_size: Sizes | None = None) -> Tensor:
        """Return the norm of a matrix, the largest of a stack, or `conv_norm_bound` of a convolution, shape ()."""
        convolution = self.convolution()
        if convolution is None:
            return matrix_norm(self.matrices()).amax()
        return certified_bound(self.tensor, convolution, input_size, GRID)


def strongest_user(modules: Sequence[nn.Module]) -> nn.Module:
    """Return the module in which a shared weight acts with the largest norm: a convolution with the least stride.

    A stride drops outputs, and more groups with the same kernel sum fewer inputs. Of equal ones, the images of a
    convolution with reflecting or replicating padding may be larger.
    """
    if len(modules) == 1:
        return modules[0]
    convolutions = [module for module in modules if isinstance(module, nn.modules.conv._ConvNd)]  # noqa: SLF001
    return min(convolutions, key=_weakness) if convolutions else modules[0]


def _weakness(module: nn.modules.conv._ConvNd) -> tuple[int, int, bool]:
    # A dilation that the stride does not divide reaches more phases of the image.
    steps = coarse_steps(module.stride, module.dilation)
    return math.prod(steps), module.groups, module.padding_mode in {"zeros", "circular"}


def _as_real(matrices: Tensor) -> Tensor:
    """Return matrices, in the last two dimensions, in float32 at least; complex ones as real ones of the same norm."""
    if matrices.is_complex():
        rows = (
            torch.cat([matrices.real, -matrices.imag], -1),
            torch.cat([matrices.imag, matrices.real], -1),
        )
        matrices = torch.cat(rows, -2)
    return matrices.to(reported(matrices))


class LinearMaps(NamedTuple):
    """Linear maps of one shape, each for its own vector, with the names of their layers."""

    names: list[str]
    apply: Callable[[Tensor], Tensor]
    """Maps (maps, ...) to (maps, ...)."""
    adjoint: Callable[[Tensor], Tensor]
    shape: Sizes
    """Of the argument of `apply`."""
    dtype: torch.dtype
    device: torch.device


def matrix_maps(names: list[str], matrices: Tensor) -> LinearMaps:
    """Return the products with `matrices`, shape (maps, rows, columns)."""
    return LinearMaps(
        names,
        # Rows times matrices: three to five times faster on a CPU than many small matrices times columns.
        lambda vectors: (vectors.unsqueeze(1) @ matrices.mT).squeeze(1),
        lambda vectors: (vectors.unsqueeze(1) @ matrices).squeeze(1),
        (matrices.shape[0], matrices.shape[2]),
        matrices.dtype,
        matrices.device,
    )


def convolution_map(layer: Layer, convolution: Convolution, input_size: Sizes) -> LinearMaps:
    """Return a convolutional layer without its bias as a map of images of `input_size`; its adjoint is exact."""
    weight = layer.tensor.to(reported(layer.tensor))
    channels = weight.shape[0] if convolution.transposed else weight.shape[1] * convolution.groups
    return LinearMaps(
        [layer.name],
        lambda images: convolution.forward(weight, images, input_size),
        lambda images: convolution.adjoint(weight, images, input_size),
        (1, channels, *input_size),
        weight.dtype,
        weight.device,
    )


def image_size(convolution: Convolution, pixels: int) -> Sizes:
    """Return an image size of `pixels` along each side, or more if the kernel or its padding need it."""
    spans = [d * (k - 1) + 1 for k, d in zip(convolution.kernel, convolution.dilation, strict=True)]
    pads = map(max, convolution.before, convolution.after)
    return tuple(max(pixels, span, pad + 1) for span, pad in zip(spans, pads, strict=True))
