r"""The norm of convolutions over images of any size, followed from step to step at all frequencies.

Without a border, a convolution is a matrix between channels at each frequency :math:`\omega`, its response

.. math:: K(\omega) = \sum_t P_t\, e^{i \langle p_t, \omega \rangle},

with the kernel's taps :math:`P_t` at the positions :math:`p_t`. A stride sorts the taps into phases, which count as
further input channels. The least upper bound of the norm over images of any size with zero padding is
:math:`\max_\omega \sigma(K(\omega))`.

Each group is a convolution of its own, and the largest norm counts. A transposed convolution has the norm of the
convolution with its weight. Dilation stretches the axis of frequencies, so only its common factor with the stride
matters.

**Two passes over the kernel.** Let the rows of U be real vectors of output channels. One product with the kernel as a
matrix gives :math:`Z_t = U P_t` for all taps at once. Then :math:`U K(\omega) = \sum_t Z_t e^{i \langle p_t, \omega
\rangle}` follows at *every* frequency, without the kernel. So small matrices give the whole function

.. math:: \tilde\sigma(\omega) = \max_{u \in \operatorname{span} U} \|K(\omega)^H u\| / \|u\| \le \sigma(K(\omega))

It is a lower bound everywhere, and exact where the largest left vector lies in the span. A step

1. reads the kernel once (Z of the last basis), looks at a grid of frequencies, and climbs from the best frequency of
   each cell of a coarse grid;
2. in each of two rounds, takes :math:`K(\omega) K(\omega)^H u` of the best u at the two best cells, and at one of the
   others in turn (two passes over the kernel with a few vectors), adds the real and imaginary parts to the basis, and
   climbs again;
3. keeps the best vector of each cell as the next basis.

A CPU knows the gain at once. There, a step ends after the first product of 2 if this gains little: two passes.

This is the subspace method for the H-infinity norm. An ascent of single frequencies with fixed vectors would be slow
where the maximum moves. It would not see another frequency overtake. This method sees all frequencies in each step.

Reference: Aliyev, Benner, Mengi, Schwerdtner & Voigt, Large-Scale Computation of L-infinity-Norms by a Greedy Subspace
Method, 2017, doi:10.1137/16M1086200; Sedghi, Gupta & Long, The Singular Values of Convolutional Layers, 2019,
arXiv:1805.10408.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.spectral.batches import SMALL_ENTRIES, Matrices
from lightning_reg.functional.spectral.subspaces import leading_vectors, orthonormal, unit_rows

ROUNDS = 2
# The number of cells of frequencies along an axis is the degree of the response plus the first number, or the second if
# it is the only axis, but at least the third. The fourth number limits all cells together.
_MORE_CELLS, _MORE_CELLS_ALONE, _LEAST_CELLS = 2, 6, 4
_MOST_CELLS = 20
# Points of the grid along each axis of a cell, in one or two dimensions and in three.
_POINTS, _POINTS_IN_3D = 3, 2
# Each round improves the best cells and one of the others in turn.
_BEST, _IN_TURN = 2, 1
_POWERS = 3
# A step ends after one product with the kernel if the relative gain is smaller than this.
_SETTLED = 3e-4
# The last steps of frequencies are this many times finer.
_FINER = 8
# See `leading_vectors`: sigma is right to 3e-3, before the rounds and the last product with the kernel.
_SQUARINGS = 7


class Taps(NamedTuple):
    """The positions of the taps, for all kernels of one kind."""

    positions: tuple[tuple[int, ...], ...]
    """One position for each tap, with a number for each spatial dimension."""
    phases: tuple[int, ...]
    """The phase of the stride for each tap."""

    @classmethod
    def of(cls, kernel: tuple[int, ...], steps: tuple[int, ...]) -> "Taps":
        """Return the taps of a kernel. `steps` is the stride without its common factor with the dilation."""
        places = torch.cartesian_prod(*(torch.arange(size) for size in kernel)).view(-1, len(kernel)).tolist()
        positions = [tuple(tap // step for tap, step in zip(place, steps, strict=True)) for place in places]
        phases = [_index([tap % step for tap, step in zip(place, steps, strict=True)], steps) for place in places]
        ranks = {phase: rank for rank, phase in enumerate(sorted(set(phases)))}
        return cls(tuple(positions), tuple(ranks[phase] for phase in phases))


class _Cells(NamedTuple):
    """A partition of all frequencies up to conjugates, as tensors."""

    positions: Tensor  # (taps, dims)
    phases: Tensor  # (taps, phases), ones and zeros
    points: Tensor  # (cells, points, dims)
    spacing: Tensor  # (dims,), the distances of the points
    waves: Tensor  # (taps, cells * points), complex


class Followed(NamedTuple):
    """The result of a step for each kernel."""

    sigma: Tensor
    """Shape (kernels,)."""
    left: Tensor
    """u, the real and imaginary parts of the left vector, shape (kernels, 2, outputs)."""
    right: Tensor
    """x, both parts of the right vector times the waves, shape (kernels, 2, inputs * taps)."""
    gain: Tensor
    """The relative gain of the last round, shape (kernels,). The remaining error is about as large."""
    bases: Tensor
    """The bases for the next step."""


class _Look(NamedTuple):
    """The result of the first product for each kernel, divided by a scale."""

    basis: Tensor  # (kernels, vectors, outputs)
    image: Tensor  # (kernels, vectors, inputs, taps)
    scale: Tensor  # (kernels, 1, 1, 1)
    at: Tensor  # (kernels, cells, dims), the best frequencies of the grid
    vectors: Tensor  # (kernels, cells, 2 * vectors), the left vectors there, see `_combined`
    sigma: Tensor  # (kernels, cells)

    def chosen(self, kernels: Tensor) -> "_Look":
        return _Look(*(part[kernels] for part in self))


def count_vectors(taps: Taps, outputs: int) -> int:
    """Return the number of vectors in the basis of such kernels."""
    return min(2 * len(_cells(taps, torch.float32, torch.device("cpu")).points), outputs)


def follow_convolutions(  # noqa: PLR0913  # the kernels, the start, and the effort
    kernels: Matrices,
    taps: Taps,
    bases: Tensor,
    turns: Tensor,
    rounds: int = ROUNDS,
    *,
    everywhere: bool = False,
    fine_steps: int = 2,
) -> Followed:
    """Take one step. Nothing waits for the device.

    Args:
        kernels: Of shape (kernels, outputs, inputs * taps).
        taps: The taps of all kernels.
        bases: Bases returned by the last step, shape (kernels, vectors, outputs).
        turns: Whole numbers, shape (kernels,). They choose the other cell to improve.
        rounds: Number of improvements of the best cells.
        everywhere: Whether to improve all cells, as at the start.
        fine_steps: Number of refinements of the frequency at the end.

    Returns:
        The estimates. sigma is the sum of u_r (kernel x_r), and its gradient is the sum of u_r x_r^T. For a zero kernel
        all numbers are zero. For a kernel that is not finite they are NaN. Both keep their bases.

    """
    cells = _cells(taps, kernels.dtype, kernels.device)
    look = _look(kernels, bases, cells)
    if everywhere or bases.shape[1] >= kernels.shape[1] or kernels.device.type != "cpu":
        return _in_rounds(kernels, look, turns, cells, rounds, everywhere=everywhere, fine_steps=fine_steps)
    found = _one_product(kernels, look, turns, cells)
    rest = [index for index, gain in enumerate(found.gain.tolist()) if not gain < _SETTLED]  # NaN is unsettled
    if not rest:
        return found
    if len(rest) == len(bases):
        return _in_rounds(kernels, look, turns, cells, rounds, fine_steps=fine_steps)
    index = torch.tensor(rest, device=bases.device)
    some = kernels.chosen(rest), look.chosen(index), turns[index]
    more = _in_rounds(*some, cells, rounds, fine_steps=fine_steps)
    return Followed(*(values.index_copy(0, index, new) for values, new in zip(found, more, strict=True)))


def _look(kernels: Matrices, basis: Tensor, cells: _Cells) -> _Look:
    """Read the kernels, and find the best frequency of the grid in each cell."""
    image = _images(kernels.times(basis), cells)
    scale = image.abs().amax((1, 2, 3), keepdim=True) + torch.finfo(image.dtype).tiny
    image = image / scale
    return _Look(basis, image, scale, *_on_grid(image, cells))


def _one_product(kernels: Matrices, look: _Look, turns: Tensor, cells: _Cells) -> Followed:
    """Improve the best cells by one product with the kernels. This is enough if the gain is small."""
    basis, image, scale, at, vectors, sigma = look
    chosen, width = _chosen(sigma.argsort(1, descending=True), turns), cells.spacing / 2
    _, z = _combined(_picked(vectors, chosen), basis, image)
    here, _ = _climb(_picked(at, chosen), z, width, cells)
    _, z = _at(here, basis, image, cells)
    here, before = _climb(here, z, width, cells)
    # The gradient can be no more exact than the frequency.
    best = before.argmax(1, keepdim=True)
    _, finest = _at(_picked(here, best), basis, image, cells)
    found = *_climb(_picked(here, best), finest, width / _FINER, cells), finest
    here, before, z = (_put(old, best, new) for old, new in zip((here, before, z), found, strict=True))
    x = _right(z, here, cells)
    left = kernels.times_transposed(torch.cat([x.real, x.imag], 1)) / scale[..., 0]
    left = torch.unflatten(left, 1, (2, -1)).transpose(1, 2)  # (kernels, cells, 2, outputs)
    lengths = torch.linalg.vector_norm(left, dim=(2, 3))
    top, best = lengths.max(1, keepdim=True)
    left = left / torch.where(lengths == 0, 1, lengths)[..., None, None]
    u = torch.view_as_real(_left(vectors, basis)[0]).transpose(2, 3)
    new = _next_basis(_put(u, chosen, left), _put(sigma, chosen, lengths), basis)
    right = torch.view_as_real(_picked(x, best)[:, 0]).mT
    gain = 1 - before.amax(1) / top[:, 0]
    return Followed(top[:, 0] * scale[:, 0, 0, 0], _picked(left, best)[:, 0], right, gain, new)


def _in_rounds(  # noqa: PLR0913  # the first look, and the effort
    kernels: Matrices,
    look: _Look,
    turns: Tensor,
    cells: _Cells,
    rounds: int,
    *,
    everywhere: bool = False,
    fine_steps: int = 2,
) -> Followed:
    """Improve cells in rounds. Each round reads the kernels twice."""
    bases, image, scale, at, vectors, _ = look
    basis, width = bases, cells.spacing / 2
    u, z = _combined(vectors, basis, image)
    at, sigma = _climb(at, z, width, cells)
    before = sigma.amax(1)
    is_large = math.prod(kernels.shape[1:]) > SMALL_ENTRIES
    for index in range(rounds):
        best = sigma.argsort(1, descending=True)
        chosen = best if everywhere else _chosen(best, turns + index)
        if bases.shape[1] < kernels.shape[1]:  # else the basis spans everything
            here = _picked(at, chosen)
            x = _right(_picked(z, chosen), here, cells)
            rows = unit_rows(kernels.times_transposed(torch.cat([x.real, x.imag], 1)))
            rows = orthonormal(rows, basis)
            more = _images(kernels.times(rows), cells) / scale
            basis, image = torch.cat([basis, rows], 1), torch.cat([image, more], 1)
        # New directions in the basis may also serve the other cells.
        again = best if everywhere or (index + 1 == rounds and not is_large) else chosen
        before, here = sigma.amax(1), _picked(at, again)
        improved = _at(here, basis, image, cells)
        found = *_climb(here, improved[1], width, cells), *improved
        at, sigma, u, z = (_put(old, again, new) for old, new in zip((at, sigma, u, z), found, strict=True))
    order = sigma.argsort(1, descending=True)
    # The gradient can be no more exact than the frequency.
    best, finest = _picked(at, order[:, :1]), _picked(z, order[:, :1])
    for index in range(fine_steps):
        if index:
            _, finest = _at(best, basis, image, cells)
        best, _ = _climb(best, finest, width / (_FINER * 2 ** max(0, index - 1)), cells)
    right = torch.view_as_real(_right(finest, best, cells)[:, 0]).mT
    # One more product makes the left vector exactly zero where the kernel is.
    left = kernels.times_transposed(right) / scale[..., 0]
    top = torch.linalg.vector_norm(left, dim=(1, 2))
    divisor = torch.where(top == 0, 1, top)
    new = _next_basis(torch.view_as_real(u).transpose(2, 3), sigma, bases)
    # A basis that spans everything stays.
    usable = (top > 0) & (bases.shape[1] < kernels.shape[1]) & new.isfinite().all(-1).all(-1)
    new = torch.where(usable[:, None, None], new, bases)
    return Followed(top * scale[:, 0, 0, 0], left / divisor[:, None, None], right, 1 - before / divisor, new)


def _next_basis(u: Tensor, sigma: Tensor, basis: Tensor) -> Tensor:
    """Return a basis of the left vectors u of all cells, those with the largest sigma first."""
    ordered = _picked(u, sigma.argsort(1, descending=True))
    return orthonormal(ordered.flatten(1, 2))[:, : basis.shape[1]]


def _images(rows: Tensor, cells: _Cells) -> Tensor:
    """Return products of vectors with kernels, shape (kernels, vectors, inputs, taps)."""
    return torch.unflatten(rows, -1, (-1, len(cells.positions)))


def _on_grid(image: Tensor, cells: _Cells) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each cell the best frequency of the grid, its left vector as `_combined` takes it, and sigma."""
    count, points = cells.points.shape[:2]
    gram = _grams(image, cells)  # (kernels, frequencies, 2 * vectors, 2 * vectors)
    # A few power iterations are enough to choose a frequency, and cost little.
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    vectors = gram.take_along_dim(diagonal.argmax(-1)[..., None, None], -2)[..., 0, :]
    for _ in range(_POWERS):
        vectors = vectors / (torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) + _tiny(vectors))
        # The vectors are rows, because products of many small matrices with columns are slow on a CPU.
        vectors = (vectors[..., None, :] @ gram)[..., 0, :]
    values = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    vectors = (vectors / (values + _tiny(vectors))).view(len(image), count, points, -1)
    squares, best = values.view(len(image), count, points).max(2)
    best = best[:, :, None, None]
    at = cells.points.expand(len(image), -1, -1, -1).take_along_dim(best, 2)[:, :, 0]
    return at, vectors.take_along_dim(best, 2)[:, :, 0], squares.sqrt()


def _grams(image: Tensor, cells: _Cells) -> Tensor:
    """Return products of all vectors' images with each other at all frequencies of the grid, as real matrices."""
    _, vectors, inputs, taps = image.shape
    phases, frequencies = cells.phases, cells.waves.shape[1]
    # The number of multiplications of either method.
    by_frequency = 4 * frequencies * vectors * inputs * phases.shape[1] * (taps + 2 * vectors)
    by_taps = vectors**2 * taps**2 * (inputs + 2 * frequencies)
    if by_frequency <= by_taps:
        waves = cells.waves[:, :, None] * phases[:, None]  # (taps, frequencies, phases)
        parts = (image @ part.flatten(1) for part in (waves.real, waves.imag))
        parts = (torch.unflatten(part, -1, waves.shape[1:]).permute(0, 3, 1, 2, 4).flatten(3) for part in parts)
        return _products(*parts)
    # With many inputs, products of taps come first, because they do not depend on frequencies.
    rows = image.transpose(2, 3).flatten(1, 2)
    products = (rows @ rows.mT).view(len(image), vectors, taps, vectors, taps).transpose(2, 3).flatten(3)
    waves = (cells.waves[:, None] * cells.waves.conj() * (phases @ phases.mT)[..., None]).flatten(0, 1)
    return _as_real(*((products @ part).permute(0, 3, 1, 2) for part in (waves.real, waves.imag)))


def _at(at: Tensor, basis: Tensor, image: Tensor, cells: _Cells) -> tuple[Tensor, Tensor]:
    """Return the best left vector in the span of `basis` at one frequency for each cell, and its image."""
    waves = _waves(at, cells)[..., None] * cells.phases  # (kernels, cells, taps, phases)
    shape = *image.shape[1:3], *waves.shape[1::2]
    parts = (image.flatten(1, 2) @ part.transpose(1, 2).flatten(2) for part in (waves.real, waves.imag))
    parts = (torch.unflatten(torch.unflatten(part, 1, shape[:2]), 3, shape[2:]) for part in parts)
    gram = _products(*(part.movedim(3, 1).flatten(3) for part in parts))
    return _combined(leading_vectors(gram, _SQUARINGS), basis, image)


def _products(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return the products of complex rows with each other, as real matrices."""
    rows, turned = torch.cat([real, imaginary], -1), torch.cat([imaginary, -real], -1)
    return _as_real(rows @ rows.mT, turned @ rows.mT)


def _as_real(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return complex matrices as real ones of twice the size; batches of complex ones are slow on a CPU."""
    return torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)


def _combined(vectors: Tensor, basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return u = q U and its image, divided by the length of u.

    Args:
        vectors: The real and then the imaginary parts of the conjugate of q, shape (kernels, cells, 2 * vectors).
        basis: U.
        image: The image of U.

    """
    u, length = _left(vectors, basis)
    return u, torch.unflatten(_combination(vectors, image.flatten(2)) / length, -1, image.shape[2:])


def _left(vectors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return u = q U divided by its length, and the length. Rounding can make the length differ from 1."""
    u = _combination(vectors, basis)
    length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    length = torch.where(length == 0, 1, length)
    return u / length, length


def _combination(vectors: Tensor, rows: Tensor) -> Tensor:
    parts = torch.cat(vectors.chunk(2, -1), 1)
    return torch.complex(*(parts @ rows).chunk(2, 1)).conj_physical()


def _climb(at: Tensor, z: Tensor, width: Tensor, cells: _Cells) -> tuple[Tensor, Tensor]:
    """Return better frequencies near `at` for a fixed u with image z, and sigma there."""
    lengths = torch.tensor([0.0, 1.0, 1 / 3, 1 / 9], dtype=at.dtype, device=at.device)
    lengths = torch.cat([lengths, -lengths[1:]])
    offsets = torch.cartesian_prod(*(lengths * part for part in width.unbind())).view(-1, len(width))
    turned, waves = z * _waves(at, cells)[..., None, :], _waves(offsets, cells)
    # All points take the same steps, so one product serves all.
    if z.shape[2] <= z.shape[3]:
        steps = (waves[..., None] * cells.phases).transpose(0, 1).flatten(1)
        response = torch.unflatten(turned @ steps, -1, (len(offsets), -1))  # (kernels, cells, inputs, offsets, phases)
        squares = torch.view_as_real(response).square().sum((2, 4, 5))
    else:
        # The products of the taps with each other. Only the real part counts.
        rows, others = torch.cat([turned.real, turned.imag], 2), torch.cat([turned.imag, -turned.real], 2)
        steps = waves[:, :, None] * waves[:, None].conj() * (cells.phases @ cells.phases.mT)
        squares = (rows.mT @ rows).flatten(2) @ steps.real.flatten(1).mT
        squares = squares + (rows.mT @ others).flatten(2) @ steps.imag.flatten(1).mT
    lengths = squares.clamp(min=0).sqrt()
    best = lengths.argmax(2)
    return at + offsets[best], lengths.take_along_dim(best[..., None], 2)[..., 0]


def _right(z: Tensor, at: Tensor, cells: _Cells) -> Tensor:
    """Return K(at)^H u over its norm, times the waves, for a u with image z.

    The kernel as a matrix is multiplied by this vector, shape (..., inputs * taps).
    """
    products = z * _waves(at, cells)[..., None, :]
    v = products.sum(-1) if cells.phases.shape[1] == 1 else (products @ cells.phases.to(z.dtype)).flatten(-2)
    return _spread(v / (torch.linalg.vector_norm(v, dim=-1, keepdim=True) + _tiny(v)), at, cells)


def _spread(v: Tensor, at: Tensor, cells: _Cells) -> Tensor:
    """Return the vector that multiplies the kernel as a matrix, shape (..., inputs * taps)."""
    by_phase = torch.unflatten(v, -1, (-1, cells.phases.shape[1]))
    by_tap = by_phase if cells.phases.shape[1] == 1 else by_phase @ cells.phases.mT.to(v.dtype)
    return (by_tap * _waves(at, cells).conj()[..., None, :]).flatten(-2)


def _waves(at: Tensor, cells: _Cells) -> Tensor:
    """Return exp(-i <p_t, w>), shape (..., taps)."""
    angles = at @ cells.positions.mT
    return torch.polar(torch.ones_like(angles), -angles)


def _chosen(best: Tensor, turns: Tensor) -> Tensor:
    """Return the first cells of `best`, which has the best cell first, and some of the others, which take turns."""
    if best.shape[1] <= _BEST + _IN_TURN:
        return best
    others = best[:, _BEST:].sort(1)[0]
    places = (turns[:, None] * _IN_TURN + torch.arange(_IN_TURN, device=best.device)) % others.shape[1]
    return torch.cat([best[:, :_BEST], others.gather(1, places)], 1)


def _picked(values: Tensor, cells: Tensor) -> Tensor:
    return values.take_along_dim(cells.view(*cells.shape, *(1,) * (values.ndim - 2)), 1)


def _put(values: Tensor, cells: Tensor, new: Tensor) -> Tensor:
    return values.scatter(1, cells.view(*cells.shape, *(1,) * (new.ndim - 2)).expand_as(new), new)


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny


def _index(place: list[int], sizes: tuple[int, ...]) -> int:
    index = 0
    for number, size in zip(place, sizes, strict=True):
        index = index * size + number
    return index


@lru_cache(maxsize=64)
def _cells(taps: Taps, dtype: torch.dtype, device: torch.device) -> _Cells:
    degrees = [max(places) - min(places) for places in zip(*taps.positions, strict=True)]
    more = _MORE_CELLS if sum(map(bool, degrees)) > 1 else _MORE_CELLS_ALONE
    counts = [max(degree + more, _LEAST_CELLS) if degree else 1 for degree in degrees]
    while math.prod(counts) > 2 * _MOST_CELLS:
        counts[counts.index(max(counts))] -= 1
    places = torch.cartesian_prod(*(torch.arange(count) for count in counts)).view(-1, len(counts)).tolist()
    # Opposite frequencies have conjugate responses.
    opposite = [[-number % count for number, count in zip(place, counts, strict=True)] for place in places]
    half = [pair[0] for pair in zip(places, opposite, strict=True) if pair[0] <= pair[1]]
    sides = zip(counts, degrees, strict=True)
    widths = torch.tensor([2 * math.pi / count if degree else 0.0 for count, degree in sides], dtype=torch.float64)
    number = _POINTS if len(counts) < 3 else _POINTS_IN_3D  # noqa: PLR2004  # dimensions
    inner = (torch.arange(number, dtype=torch.float64) - (number - 1) / 2) / number
    offsets = torch.cartesian_prod(*(inner if degree else torch.zeros(1, dtype=torch.float64) for degree in degrees))
    points = (torch.tensor(half, dtype=torch.float64)[:, None] + offsets.view(-1, len(counts))) * widths
    positions = torch.tensor(taps.positions, dtype=torch.float64)
    angles = positions @ points.flatten(0, 1).mT
    waves = torch.polar(torch.ones_like(angles), -angles).to(dtype=dtype.to_complex(), device=device)
    phases = torch.nn.functional.one_hot(torch.tensor(taps.phases), max(taps.phases) + 1)
    return _Cells(
        positions.to(device, dtype),
        phases.to(device, dtype),
        points.to(device, dtype),
        (widths / number).to(device, dtype),
        waves,
    )
