"""Certified upper bounds of convolutions: the largest norm of their frequency response on a grid.

Without a border, a convolution is a matrix between channels at each frequency. A stride sorts the pixels into phases,
and each phase counts as further input channels. A layer with zero padding is a part of that operator. For images of any
size, the operator acts on the whole line. For images of a known size, it acts on a ring that is long enough. A grid on
the line may miss the largest norm. M. Riesz's lemma limits by how much: from its maximum, a trigonometric polynomial of
degree m falls no faster than cos(m x).
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_reg.functional.spectral.convolution import Convolution, Sizes, smallest_image
from lightning_reg.functional.spectral.matrices import eigenvalue_work, largest_singular_value, scale_of
from lightning_reg.functional.spectral.responses import Axis, largest_response, response_work
from lightning_reg.functional.tensors.precision import reported, wide, without_autocast

# The usual number of frequencies for each dimension.
GRID = 16
# Layers with at most this many rows or columns are written out as matrices, which is exact.
_DENSE = 256
# More than the loss from rounding in float32.
_ROUNDING = 1e-5
# The least numbers of frequencies per degree. At worst, the bound is too large by a factor of 1 / cos(pi / 8) = 1.083
# and 1 / cos(pi / 32) = 1.005.
_COARSE, _FINE = 4, 16
# The grid of a known image size may have this many times more points.
_FINER = 4


def certified_bound(weight: Tensor, layer: Convolution, input_size: Sizes | None, grid: int) -> Tensor:
    """Return an upper bound of the norm of the layer with `weight`, float32 or float64, shape ()."""
    if not weight.numel():
        return weight.sum().to(reported(weight))
    with without_autocast(weight.device):
        entries = wide(weight)
        # Sums of subnormal or huge taps would exceed the allowed rounding.
        scale = scale_of(entries.detach().abs().amax())
        entries = entries * scale.reciprocal()
        if input_size is not None and min(layer.matrix_shape(weight, input_size)) <= _DENSE:
            bound = largest_singular_value(layer.matrices(entries, input_size)).amax()
        else:
            bound = frequency_bound(entries, layer, input_size, grid)
        return _raised(bound * (1 + _ROUNDING) * scale, reported(weight))


def bound_work(weight: Tensor, layer: Convolution, input_size: Sizes | None, grid: int) -> float:
    """Return about how many operations `certified_bound` takes."""
    if not weight.numel():
        return 0.0
    if input_size is not None and min(shape := layer.matrix_shape(weight, input_size)) <= _DENSE:
        return layer.groups * eigenvalue_work(shape)
    axes = _sampled(layer, input_size, grid, ring=False)
    phases = math.prod(1 + max(axis.phases, default=0) for axis in axes)
    shape = weight.shape[0] // layer.groups, weight.shape[1] * phases
    taps, points = weight.shape[2:].numel(), math.prod(axis.points for axis in axes)
    return layer.groups * response_work(shape, taps // phases, points)


def reshaped_bound(weight: Tensor, layer: Convolution, input_size: Sizes | None) -> Tensor:
    r"""Return an upper bound of the norm of the layer with `weight` by one eigenvalue problem, shape ().

    It is the norm of the kernel as a matrix (outputs, inputs * taps), times the root of the number of windows that show
    one pixel. That number is :math:`\prod \lceil k / s \rceil`, times the number of copies of the pixel after padding.
    """
    if not weight.numel():
        return weight.sum().to(reported(weight))
    windows = 1
    settings = zip(layer.kernel, layer.stride, layer.dilation, layer.before, layer.after, strict=True)
    for dim, (kernel, stride, dilation, before, after) in enumerate(settings):
        windows *= -(-kernel // (stride // math.gcd(stride, dilation)))
        if layer.padding_mode != "zeros" and before + after:
            axis = _Dimension(kernel, stride, dilation, before, after, layer.padding_mode, 1)
            windows *= max(axis.copies(n) for n in ([input_size[dim]] if input_size else axis.any_image()))
    with without_autocast(weight.device):
        entries = wide(weight)
        norm = largest_singular_value(entries.reshape(layer.groups, -1, math.prod(entries.shape[1:]))).amax()
        return _raised(norm * math.sqrt(windows) * (1 + _ROUNDING), reported(weight))


def _raised(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bound in `dtype`, raised by its smallest number, because rounding changes subnormal numbers by more."""
    bound, kind = bound.to(dtype), torch.finfo(dtype)
    return bound + bound.detach().sign() * kind.smallest_normal * kind.eps


def bound_allowance(layer: Convolution) -> float:
    """Return the largest ratio of `certified_bound` with `GRID`, for images of any size, to the largest response."""
    factors = [math.prod(axis.factor for axis in _sampled(layer, None, GRID, ring=False))]
    if layer.padding_mode == "circular" and set(layer.stride) == {1}:
        # Then the ring has the same response.
        factors.append(math.prod(axis.factor for axis in _sampled(layer, None, GRID, ring=True)))
    return min(factors) * (1 + 2 * _ROUNDING)


def frequency_bound(weight: Tensor, layer: Convolution, input_size: Sizes | None, grid: int) -> Tensor:
    """Return an upper bound of the norm of the layer with `weight`, up to rounding, shape ()."""
    line = _sampled(layer, input_size, grid, ring=False)
    bound = largest_response(weight, layer.groups, line)
    if layer.padding_mode == "circular" and any(layer.before + layer.after):
        ring = _sampled(layer, input_size, grid, ring=True)
        bound = torch.minimum(bound, largest_response(weight, layer.groups, ring))
    return bound


def _sampled(layer: Convolution, input_size: Sizes | None, grid: int, *, ring: bool) -> list[Axis]:
    """Return the axes of `layer`. `ring` treats circular padding as a ring, not as an image that repeats its border."""
    axes = []
    images = None if input_size is None else layer.image_sizes(input_size)
    settings = zip(layer.kernel, layer.stride, layer.dilation, layer.before, layer.after, strict=True)
    for dim, (kernel, stride, dilation, before, after) in enumerate(settings):
        large, small = (None, None) if images is None else (images[0][dim], images[1][dim])
        mode = layer.padding_mode if before + after else "zeros"
        axis = _Dimension(kernel, stride, dilation, before, after, mode, grid)
        if mode == "zeros":
            axes.append(axis.cut_out(large, small, before))
        elif ring:
            axes.append(axis.closed(large))
        else:
            axes.append(axis.padded(large, small))
    return axes


@dataclass(frozen=True, slots=True)
class _Dimension:
    """One spatial dimension of a layer. The layer is a part of an operator that is diagonal in frequency."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    mode: str
    grid: int

    def cut_out(self, large: int | None, small: int | None, before: int) -> Axis:
        """Return the axis for an image of `large` pixels (None for any size), with `before` zeros in front."""
        if large is None or small is None:
            return self._on_line(self.stride, self.grid, _COARSE)
        # Taps that meet no pixel do not count. The ring is so long that no tap reaches a pixel by wrapping around.
        starts = [self.dilation * tap - before for tap in range(self.kernel)]
        step, end = self.stride, (small - 1) * self.stride
        met = [t for t, start in enumerate(starts) if any(0 <= start + j < large for j in range(0, end + 1, step))]
        behind = starts[-1] + end - (large - 1)
        points = -(-(large + max(before, behind, 0)) // step)
        return self._on_ring(points, step, met)

    def padded(self, large: int | None, small: int | None) -> Axis:
        """Return the axis for padding with copies of pixels. They make the image longer, and its norm larger."""
        if large is None:
            axis = self.cut_out(None, None, 0)
        else:
            axis = self.cut_out(large + self.before + self.after, small, 0)
        copies = max(self.copies(n) for n in ([large] if large is not None else self.any_image()))
        return _scaled(axis, math.sqrt(copies))

    def closed(self, size: int | None) -> Axis:
        """Return the axis for circular padding. The outputs lie on a ring, and some may occur more than once.

        They lie at multiples of the stride around the ring. So they lie at multiples of the greatest common divisor of
        the stride and the size.
        """
        if size is not None:
            step = math.gcd(self.stride, size)
            axis = self._on_ring(size // step, step, list(range(self.kernel)))
            return _scaled(axis, math.sqrt(self._rounds(size)))
        rounds = max(self._rounds(n) for n in self.any_image())
        return _scaled(self._on_line(1, self.grid, _COARSE), math.sqrt(rounds))

    def _on_line(self, stride: int, points: int, least: int) -> Axis:
        # Only the factor that stride and dilation do not share makes phases.
        step = stride // math.gcd(stride, self.dilation)
        taps = list(range(self.kernel))
        degree = (self.kernel - 1) // step
        points = max(points, least * degree) if degree else 1
        factor = 1 / math.cos(math.pi * degree / (2 * points))
        return Axis(taps, [tap % step for tap in taps], [tap // step for tap in taps], points, factor)

    def _on_ring(self, points: int, step: int, taps: list[int]) -> Axis:
        limit = max(_FINER * self.grid, _FINE * ((self.kernel - 1) // (step // math.gcd(step, self.dilation))))
        if points > limit and len(taps) == self.kernel:
            return self._on_line(step, limit, _FINE)
        places = [divmod(self.dilation * tap, step) for tap in taps]
        ranks = {phase: rank for rank, phase in enumerate(dict.fromkeys(phase for _, phase in places))}
        # The start of a phase does not change the norm.
        first = {phase: min(q for q, r in places if r == phase) for phase in ranks}
        positions = [(q - first[r]) % points for q, r in places]
        return Axis(taps, [ranks[r] for _, r in places], positions, points if any(positions) else 1, 1.0)

    def any_image(self) -> range:
        """Return enough of the image sizes that the layer takes. Larger images have no more copies or rounds."""
        span = self.dilation * (self.kernel - 1) + 1
        pad = self.before + self.after
        least = max(smallest_image(self.mode, self.before, self.after), span - pad)
        return range(least, least + pad + 2 * self.stride + 2)

    def copies(self, size: int) -> int:
        """Return how often the padded image shows the pixel with the most copies."""
        outside = [*range(-self.before, 0), *range(size, size + self.after)]
        if self.mode == "circular":
            sources = [place % size for place in outside]
        elif self.mode == "replicate":
            sources = [min(max(place, 0), size - 1) for place in outside]
        else:
            sources = [-place if place < 0 else 2 * (size - 1) - place for place in outside]
        return 1 + max(Counter(sources).values())

    def _rounds(self, size: int) -> int:
        """Return how often the most frequent output occurs on a ring of `size` pixels."""
        span = self.dilation * (self.kernel - 1) + 1
        outputs = (size + self.before + self.after - span) // self.stride + 1
        return -(-outputs * math.gcd(self.stride, size) // size)


def _scaled(axis: Axis, factor: float) -> Axis:
    return Axis(axis.taps, axis.phases, axis.positions, axis.points, axis.factor * factor)
