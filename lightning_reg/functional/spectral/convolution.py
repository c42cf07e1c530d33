"""A convolution as a linear map between images of one size, with its exact adjoint."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_reg import _checks
from lightning_reg.functional.tensors.weights import as_weight

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
Sizes = tuple[int, ...]

_DOWN: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_UP: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def coarse_steps(stride: Sizes, dilation: Sizes) -> Sizes:
    """Return the stride without its common factor with the dilation: only that part sorts taps into phases."""
    return tuple(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))


@dataclass(frozen=True, slots=True)
class Convolution:
    """The settings of a convolution besides its weight, one value for each spatial dimension.

    A transposed convolution with a weight is the adjoint of the convolution with the same weight ("down": from the
    larger image to the smaller), whose spectrum is computed.
    """

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes
    after: Sizes
    output_padding: Sizes
    groups: int
    padding_mode: str
    transposed: bool

    def image_sizes(self, input_size: Sizes) -> tuple[Sizes, Sizes]:
        """Return the sizes of the larger and the smaller image for an input of the layer of `input_size`.

        Raises:
            ValueError: If the layer takes no such input.

        """
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        pads = [a + b for a, b in zip(self.before, self.after, strict=True)]
        if self.transposed:
            output = tuple(
                (n - 1) * s - pad + span + extra
                for n, s, pad, span, extra in zip(
                    input_size, self.stride, pads, spans, self.output_padding, strict=True
                )
            )
            sizes = output, input_size
        else:
            lengths = (n + pad - span for n, pad, span in zip(input_size, pads, spans, strict=True))
            output = tuple(length // s + 1 for length, s in zip(lengths, self.stride, strict=True))
            sizes = input_size, output
        smallest = [smallest_image(self.padding_mode, a, b) for a, b in zip(self.before, self.after, strict=True)]
        if min(output) < 1 or any(n < least for n, least in zip(input_size, smallest, strict=True)):
            msg = f"`input_size` must be one that the layer takes, got {input_size}: its kernel or padding is larger."
            raise ValueError(msg)
        return sizes

    def forward(self, weight: Tensor, images: Tensor, input_size: Sizes) -> Tensor:
        """Return the output of the layer without its bias for a batch of images of `input_size`, differentiably."""
        return self._up(weight, images, input_size) if self.transposed else self._down(weight, images, input_size)

    def adjoint(self, weight: Tensor, images: Tensor, input_size: Sizes) -> Tensor:
        """Return the adjoint of `forward` at a batch of its outputs."""
        return self._down(weight, images, input_size) if self.transposed else self._up(weight, images, input_size)

    def _down(self, weight: Tensor, images: Tensor, input_size: Sizes) -> Tensor:
        padding = self._native_padding()
        if padding is None:
            padding = (0,) * len(self.kernel)
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            pairs = zip(reversed(self.before), reversed(self.after), strict=True)
            images = functional.pad(images, list(chain.from_iterable(pairs)), mode)
        convolve = _DOWN[len(self.kernel)]
        images = convolve(images, weight, None, self.stride, padding, self.dilation, self.groups)
        # An output padding of a stride or more would give further outputs.
        for axis, size in enumerate(self.image_sizes(input_size)[1], start=2):
            images = images.narrow(axis, 0, size)
        return images

    def _up(self, weight: Tensor, images: Tensor, input_size: Sizes) -> Tensor:
        large, small = self.image_sizes(input_size)
        padding = self._native_padding()
        if padding is None:
            padding = (0,) * len(self.kernel)
            large = tuple(n + a + b for n, a, b in zip(large, self.before, self.after, strict=True))
        axes = zip(large, small, self.stride, padding, self.kernel, self.dilation, strict=True)
        rest = tuple(n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, k, d in axes)
        convolve = _UP[len(self.kernel)]
        images = convolve(images, weight, None, self.stride, padding, rest, self.groups, self.dilation)
        if self._native_padding() is None:
            for axis, (before, after) in enumerate(zip(self.before, self.after, strict=True), start=2):
                images = _unpad(images, axis, before, after, self.padding_mode)
        return images

    def _native_padding(self) -> Sizes | None:
        """Return the padding as torch's convolutions take it; None if they do not know it."""
        if self.padding_mode == "zeros" and self.before == self.after:
            return self.before
        return self.before if not any(self.before + self.after) else None

    def matrices(self, weight: Tensor, input_size: Sizes) -> Tensor:
        """Return the matrix of each group, shape (groups, rows, columns); of the adjoint for a transposed one."""
        rows, columns = self.matrix_shape(weight, input_size)
        large, small = self.image_sizes(input_size)
        count, shape = (rows, small) if rows < columns else (columns, large)
        basis = torch.eye(count, dtype=weight.dtype, device=weight.device).view(count, -1, *shape)
        basis = basis.repeat(1, self.groups, *(1,) * len(shape))
        images = (self._up if rows < columns else self._down)(weight, basis, input_size)
        images = images.reshape(count, self.groups, -1).transpose(0, 1)
        return images if rows < columns else images.mT

    def matrix_shape(self, weight: Tensor, input_size: Sizes) -> tuple[int, int]:
        """Return rows and columns of `matrices`."""
        large, small = self.image_sizes(input_size)
        return weight.shape[0] // self.groups * math.prod(small), weight.shape[1] * math.prod(large)


def smallest_image(padding_mode: str, before: int, after: int) -> int:
    """Return the size of the smallest image that `torch.nn.functional.pad` takes."""
    least = {"zeros": 1, "replicate": 1, "circular": max(before, after, 1), "reflect": max(before, after) + 1}
    return least[padding_mode]


def _unpad(images: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Return the adjoint of padding along `axis`: what lies in the padding goes back to the pixels it was copied from.

    By slices, because `index_add_` adds in any order on a GPU, and ranks would differ.
    """
    size = images.shape[axis] - before - after
    inner = images.narrow(axis, before, size)
    if mode == "zeros" or not before + after:
        return inner
    inner = inner.clone()
    left, right = images.narrow(axis, 0, before), images.narrow(axis, before + size, after)
    if mode == "circular":
        inner.narrow(axis, size - before, before).add_(left)
        inner.narrow(axis, 0, after).add_(right)
    elif mode == "reflect":
        inner.narrow(axis, 1, before).add_(left.flip(axis))
        inner.narrow(axis, size - 1 - after, after).add_(right.flip(axis))
    else:
        inner.narrow(axis, 0, 1).add_(left.sum(axis, keepdim=True))
        inner.narrow(axis, size - 1, 1).add_(right.sum(axis, keepdim=True))
    return inner


def convolution(  # noqa: PLR0913  # what a convolution is made of
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
) -> Convolution:
    """Return the checked description; `padding` may be "valid" or "same", as torch's layers have it."""
    dims = as_weight(weight).ndim - 2
    if dims not in _DOWN:
        msg = f"`weight` must have 3 to 5 dimensions, for a 1d, 2d or 3d convolution, got {weight.ndim}."
        raise ValueError(msg)
    if weight.is_complex():
        msg = f"`weight` must be real, got {weight.dtype}."
        raise TypeError(msg)
    kernel = tuple(weight.shape[2:])
    strides = sizes("stride", stride, dims)
    dilations = sizes("dilation", dilation, dims)
    (group_count,) = sizes("groups", groups, 1)
    if weight.shape[0] % group_count:
        msg = f"`groups` must divide the {weight.shape[0]} rows of `weight`, got {groups}."
        raise ValueError(msg)
    _checks.one_of("padding_mode", padding_mode, PADDING_MODES)
    _checks.boolean("transposed", transposed)
    if transposed and padding_mode != "zeros":
        msg = f"`padding_mode` must be 'zeros' for a transposed convolution, got {padding_mode!r}."
        raise ValueError(msg)
    before = after = (0,) * dims
    if padding == "same":
        if transposed or max(strides) > 1:
            msg = "`padding` must be a number for strided and transposed convolutions, got 'same'."
            raise ValueError(msg)
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        before = tuple(total // 2 for total in totals)
        after = tuple(total - total // 2 for total in totals)
    elif padding != "valid":
        before = after = sizes("padding", padding, dims, least=0)
    extra = sizes("output_padding", output_padding, dims, least=0)
    return Convolution(
        kernel, strides, dilations, before, after, extra, group_count, padding_mode, transposed=transposed
    )


def convolution_of(module: nn.Module, weight: Tensor) -> Convolution | None:
    """Return the convolution that `module` computes with `weight`; None if it is not a convolutional layer."""
    if not isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001  # their common class has no public name
        return None
    names = ("stride", "padding", "dilation", "groups", "padding_mode", "transposed", "output_padding")
    settings: dict[str, Any] = {name: getattr(module, name) for name in names}
    return convolution(weight, **settings)


def sizes(name: str, value: object, dims: int, *, least: int = 1) -> Sizes:
    """Return `value`, a whole number or one for each dimension, as a tuple of whole numbers >= `least`."""
    values = tuple(value) if _checks.is_list(value) else (value,) * dims
    checked = tuple(number for number in values if isinstance(number, int) and not isinstance(number, bool))
    if len(checked) < len(values):
        msg = f"`{name}` must be a whole number, or one for each of {dims} dimensions, got {value!r}."
        raise TypeError(msg)
    if len(checked) != dims or min(checked) < least or max(checked) > _checks.LARGEST_COUNT:
        msg = f"`{name}` must be a whole number >= {least}, or {dims} of them, got {value!r}."
        raise ValueError(msg)
    return checked
