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

It is a lower bound everywhere, and exact where the largest left vector lies in the span. A round

1. reads the kernel once (Z of the last basis), looks at a grid of frequencies, and climbs from the best frequency of
   each of the few best cells of a coarse grid;
2. takes :math:`K(\omega) K(\omega)^H u` of the best u of these cells, and of the best u at one point of each other
   cell, a different one each time. This is one more pass over the kernel;
3. keeps the real and imaginary parts of the results as the next basis.

The points of the other cells matter. At a frequency that the basis does not know, the function is far below
:math:`\sigma`, so a maximum would stay unseen between frequencies that are only improved where they are best.

Rounds follow while the norm gains. A CPU knows the gain at once; other devices take all rounds.

This is the subspace method for the H-infinity norm. An ascent of single frequencies with fixed vectors would be slow
where the maximum moves. It would not see another frequency overtake. This method sees all frequencies in each step.

Reference: Aliyev, Benner, Mengi, Schwerdtner & Voigt, Large-Scale Computation of L-infinity-Norms by a Greedy Subspace
Method, 2017, doi:10.1137/16M1086200; Sedghi, Gupta & Long, The Singular Values of Convolutional Layers, 2019,
arXiv:1805.10408.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.spectral.batches import Matrices
from lightning_reg.functional.spectral.followed.cells import Cells, Taps
from lightning_reg.functional.spectral.followed.subspaces import leading_vectors, orthonormal

# A round climbs in so many cells.
_CLIMBS = 4
# The step from a point of a cell to the next one. No common factor with the number of points, so all have their turn.
_STRIDE = 5
_POWERS = 4
# No more rounds follow if the relative gain is smaller than this.
_SETTLED = 3e-4
# The last steps of frequencies are this many times finer.
_FINER = 8
# See `leading_vectors`: sigma is right to 3e-3, before the last product with the kernel.
_SQUARINGS = 7


class Followed(NamedTuple):
    """The result of a step for each kernel."""

    sigma: Tensor
    """Shape (kernels,)."""
    left: Tensor
    """u, the real and imaginary parts of the left vector, shape (kernels, 2, outputs)."""
    right: Tensor
    """x, both parts of the right vector times the waves, shape (kernels, 2, inputs * taps)."""
    gain: Tensor
    """The relative gain of the last round, shape (kernels,)."""
    bases: Tensor
    """The bases for the next step."""


class _Subspace(NamedTuple):
    """Orthonormal left vectors of each kernel and their images, divided by a scale."""

    basis: Tensor  # (kernels, vectors, outputs)
    image: Tensor  # (kernels, vectors, inputs, taps)
    products: Tensor | None  # (kernels, vectors^2, taps^2), of the images for all pairs of taps

    @classmethod
    def of(cls, basis: Tensor, image: Tensor, cells: Cells) -> "_Subspace":
        _, vectors, inputs, taps = image.shape
        frequencies, phases = len(cells.point_waves), cells.phases.shape[1]
        # The number of multiplications of either method.
        by_frequency = 4 * frequencies * vectors * inputs * phases * (taps + 2 * vectors)
        by_taps = vectors**2 * taps**2 * (inputs + 2 * frequencies)
        if by_frequency <= by_taps:
            return cls(basis, image, None)
        # With many inputs, products of taps come first, because they do not depend on frequencies.
        rows = image.transpose(2, 3).flatten(1, 2)
        products = (rows @ rows.mT).view(len(image), vectors, taps, vectors, taps)
        return cls(basis, image, products.transpose(2, 3).flatten(3).flatten(1, 2))

    def grams(self, waves: Tensor, cells: Cells) -> Tensor:
        """Return products of the images with each other, as real matrices, shape (kernels, frequencies, ...).

        Args:
            waves: Of some frequencies, shape (kernels or 1, frequencies, taps).
            cells: For the phases of the taps.

        """
        vectors = self.basis.shape[1]
        if self.products is not None:
            pairs = waves[..., None] * waves.conj()[..., None, :] * (cells.phases @ cells.phases.mT)
            parts = (self.products @ part.flatten(2).mT for part in (pairs.real, pairs.imag))
            return _as_real(*(torch.unflatten(part.mT, 2, (vectors, vectors)) for part in parts))
        by_phase = (waves[..., None] * cells.phases).transpose(1, 2)  # (kernels or 1, taps, frequencies, phases)
        parts = (self.image.flatten(1, 2) @ part.flatten(2) for part in (by_phase.real, by_phase.imag))
        parts = (torch.unflatten(torch.unflatten(part, 2, by_phase.shape[2:]), 1, (vectors, -1)) for part in parts)
        return _products(*(part.movedim(3, 1).flatten(3) for part in parts))

    def combined(self, vectors: Tensor) -> Tensor:
        """Return the image of u = q U, divided by the length of u. Rounding can make the length differ from 1.

        Args:
            vectors: The real and then the imaginary parts of the conjugate of q, shape (kernels, cells, 2 * vectors).

        """
        length = torch.linalg.vector_norm(_combination(vectors, self.basis), dim=-1, keepdim=True)
        divided = _combination(vectors, self.image.flatten(2)) / torch.where(length == 0, 1, length)
        return torch.unflatten(divided, -1, self.image.shape[2:])


def count_vectors(taps: Taps, outputs: int) -> int:
    """Return the number of vectors in the basis of such kernels."""
    return min(2 * len(Cells.of(taps, torch.float32, torch.device("cpu")).points), outputs)


def follow_convolutions(
    kernels: Matrices,
    taps: Taps,
    bases: Tensor,
    turns: Tensor,
    rounds: int,
    fine_steps: int = 1,
) -> Followed:
    """Take one step. Nothing waits for the device.

    Args:
        kernels: Of shape (kernels, outputs, inputs * taps).
        taps: The taps of all kernels.
        bases: Bases returned by the last step, shape (kernels, vectors, outputs).
        turns: Whole numbers, shape (kernels,). They choose the points of the cells that are not among the best.
        rounds: The largest number of rounds after the first.
        fine_steps: Number of last refinements of the frequencies, at least 1.

    Returns:
        The estimates. sigma is the sum of u_r (kernel x_r), and its gradient is the sum of u_r x_r^T. For a zero kernel
        all numbers are zero. For a kernel that is not finite they are NaN. Both keep their bases.

    """
    cells = Cells.of(taps, kernels.dtype, kernels.device)
    found = _round(kernels, bases, turns, cells, fine_steps)
    for index in range(1, 1 if _spans_all(bases) else 1 + rounds):
        if kernels.device.type != "cpu":
            found = _round(kernels, found.bases, turns + index, cells, fine_steps)
            continue
        rest = [kernel for kernel, gain in enumerate(found.gain.tolist()) if not gain < _SETTLED]  # NaN is unsettled
        if not rest:
            break
        chosen = torch.tensor(rest)
        more = _round(kernels.chosen(rest), found.bases[chosen], turns[chosen] + index, cells, fine_steps)
        found = Followed(*(values.index_copy(0, chosen, new) for values, new in zip(found, more, strict=True)))
    return found


def _round(kernels: Matrices, basis: Tensor, turns: Tensor, cells: Cells, fine_steps: int) -> Followed:
    """Climb in the best cells, and improve the vectors of all cells by one product with the kernels."""
    image = torch.unflatten(kernels.times(basis), -1, (-1, len(cells.positions)))
    scale = image.abs().amax((1, 2, 3), keepdim=True) + _tiny(image)
    space = _Subspace.of(basis, image / scale, cells)
    climbs = len(cells.points) if _spans_all(basis) else _CLIMBS
    at, vectors, known = _on_grid(space, turns, cells, climbs)
    others = at[:, climbs:], space.combined(vectors[:, climbs:]), known[:, climbs:]
    climbed = _climbed(at[:, :climbs], vectors[:, :climbs], space, cells, fine_steps)
    at, z, known = (torch.cat(pair, 1) for pair in zip(climbed, others, strict=True))

    x = _right(z, at, cells)
    left = kernels.times_transposed(torch.cat([x.real, x.imag], 1)) / scale[..., 0]
    left = torch.unflatten(left, 1, (2, -1)).transpose(1, 2)  # (kernels, cells, 2, outputs)
    lengths = torch.linalg.vector_norm(left, dim=(2, 3))
    divisor = torch.where(lengths == 0, 1, lengths)
    left = left / divisor[..., None, None]

    order = lengths.argsort(1, descending=True)
    best = order[:, :1]
    sigma = _picked(lengths, best)[:, 0]
    right = torch.view_as_real(_picked(x, best)[:, 0]).mT
    gain = 1 - known.amax(1) / _picked(divisor, best)[:, 0]
    new = basis  # one that spans everything stays
    if not _spans_all(basis):
        new = orthonormal(_picked(left, order).flatten(1, 2))[:, : basis.shape[1]]
        usable = (sigma > 0) & new.isfinite().all(-1).all(-1)
        new = torch.where(usable[:, None, None], new, basis)
    return Followed(sigma * scale[:, 0, 0, 0], _picked(left, best)[:, 0], right, gain, new)


def _spans_all(basis: Tensor) -> bool:
    """Tell whether a basis spans all left vectors. Then the function is exact, and only frequencies can improve."""
    return basis.shape[1] == basis.shape[2]


def _climbed(
    at: Tensor, vectors: Tensor, space: _Subspace, cells: Cells, fine_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return better frequencies near `at`, the images of their best left vectors, and sigma.

    Args:
        at: The frequencies from which to climb, shape (kernels, cells, dims).
        vectors: Their left vectors, as `_on_grid` returns them.
        space: The subspace of the left vectors.
        cells: The cells.
        fine_steps: Number of last refinements, at least 1.

    """
    width = cells.spacing / 2
    if _spans_all(space.basis):  # only the frequencies can improve, at little cost
        at, _ = _climb(at, space.combined(vectors), width, cells)
    at = _tops(at, vectors, width, space, cells)
    # The gradient can be no more exact than the frequency.
    for index in range(fine_steps):
        z = space.combined(leading_vectors(space.grams(cells.waves(at), cells), _SQUARINGS))
        at, sigma = _climb(at, z, width / (_FINER * 2**index), cells)
    return at, z, sigma


def _tops(at: Tensor, vectors: Tensor, width: Tensor, space: _Subspace, cells: Cells) -> Tensor:
    """Return for each frequency the top of the parabolas through the squares of sigma along each axis.

    A climb with a fixed vector would take small steps where the best vector changes with the frequency.
    """
    steps = torch.diag(width)[:, None]
    around = torch.cat([at[:, None], at[:, None] + steps, at[:, None] - steps], 1)  # (kernels, places, cells, dims)
    grams = torch.unflatten(space.grams(cells.waves(around.flatten(1, 2)), cells), 1, around.shape[1:3])
    squares = _powers(vectors[:, None], grams)[1]
    here, above, below = squares[:, :1], squares[:, 1 : 1 + len(width)], squares[:, 1 + len(width) :]
    bend = 2 * here - above - below
    is_top = bend > 0
    shift = (above - below) / (2 * torch.where(is_top, bend, 1))
    shift = torch.where(is_top, shift, (above - below).sign()).clamp(-1, 1)
    return at + shift.mT * width


def _on_grid(space: _Subspace, turns: Tensor, cells: Cells, climbs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each cell a frequency, its left vector as `_Subspace.combined` takes it, and sigma.

    The cells with the largest sigma come first. The first `climbs` cells have their best point. The others have one in
    turn.
    """
    count, points = cells.points.shape[:2]
    gram = space.grams(cells.point_waves[None], cells)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    rows = gram.take_along_dim(diagonal.argmax(-1)[..., None, None], -2)[..., 0, :]
    vectors, squares = _powers(rows, gram)
    highest, best = torch.unflatten(squares, 1, (count, points)).max(2)
    order = highest.argsort(1, descending=True)
    first, others = order[:, :climbs], order[:, climbs:]
    in_turn = (turns[:, None] * _STRIDE + others) % points
    chosen = order * points + torch.cat([_picked(best, first), in_turn], 1)
    return cells.points.flatten(0, 1)[chosen], _picked(vectors, chosen), _picked(squares, chosen).sqrt()


def _powers(vectors: Tensor, grams: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors after a few power iterations, and the squares of sigma. They are enough for a frequency."""
    for _ in range(_POWERS):
        vectors = vectors / (torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) + _tiny(vectors))
        # The vectors are rows, because products of many small matrices with columns are slow on a CPU.
        vectors = (vectors[..., None, :] @ grams)[..., 0, :]
    squares = torch.linalg.vector_norm(vectors, dim=-1)
    return vectors / (squares[..., None] + _tiny(squares)), squares


def _products(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return the products of complex rows with each other, as real matrices."""
    rows, turned = torch.cat([real, imaginary], -1), torch.cat([imaginary, -real], -1)
    return _as_real(rows @ rows.mT, turned @ rows.mT)


def _as_real(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return complex matrices as real ones of twice the size; batches of complex ones are slow on a CPU."""
    return torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)


def _combination(vectors: Tensor, rows: Tensor) -> Tensor:
    parts = torch.cat(vectors.chunk(2, -1), 1)
    return torch.complex(*(parts @ rows).chunk(2, 1)).conj_physical()


def _climb(at: Tensor, z: Tensor, width: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
    """Return better frequencies near `at` for a fixed u with image z, and sigma there."""
    lengths = torch.tensor([0.0, 1.0, 1 / 3, 1 / 9], dtype=at.dtype, device=at.device)
    lengths = torch.cat([lengths, -lengths[1:]])
    offsets = torch.cartesian_prod(*(lengths * part for part in width.unbind())).view(-1, len(width))
    turned, waves = z * cells.waves(at)[..., None, :], cells.waves(offsets)
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


def _right(z: Tensor, at: Tensor, cells: Cells) -> Tensor:
    """Return K(at)^H u over its norm, times the waves, for a u with image z.

    The kernel as a matrix is multiplied by this vector, shape (..., inputs * taps).
    """
    waves, phases = cells.waves(at)[..., None, :], cells.phases
    has_stride = phases.shape[1] > 1
    v = z * waves  # (kernels, cells, inputs, taps)
    v = v @ phases.to(v.dtype) if has_stride else v.sum(-1, keepdim=True)
    v = v / (torch.linalg.vector_norm(v, dim=(-2, -1), keepdim=True) + _tiny(v))
    right: Tensor = (v @ phases.mT.to(v.dtype) if has_stride else v) * waves.conj()
    return right.flatten(-2)


def _picked(values: Tensor, cells: Tensor) -> Tensor:
    return values.take_along_dim(cells.view(*cells.shape, *(1,) * (values.ndim - 2)), 1)


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
