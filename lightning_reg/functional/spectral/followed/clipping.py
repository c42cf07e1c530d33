r"""Clip singular values above a bound from step to step, without a decomposition of the matrix.

After a training step, only a few singular values lie above the bound c. Their left vectors lie in the block Krylov
space of the last step's left vectors. The orthonormal rows V span the images of that space. With
:math:`S = (V W^T W V^T)^{1/2}`, the result is

.. math:: W - W V^T \bigl(1 - c \max(S, c)^{-1}\bigr) V

which sets the singular values of :math:`W V^T` above c to c. Zero rows of W are zero in :math:`W V^T`, and zero columns
are zero in V, so both stay exactly zero. Matrix functions apply only to small matrices. Nothing waits for the device.
If the space holds all vectors above the bound, the result is the nearest matrix inside it. The space may miss some, so
the caller runs an exact check now and then, and at once if `Clipped.is_doubtful`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.spectral.followed.subspaces import (
    leading_subspace,
    leading_vectors,
    orthonormal,
    probing,
    square_root,
    start_basis,
    unit_rows,
)
from lightning_reg.functional.tensors.precision import wide

BLOCK = 16
# If the largest singular value gains a larger share in the last round, more rounds are needed.
_SETTLED = 2e-3
# The margin of squares that are compared with the bound. It exceeds the rounding of products of rows in float32.
_ALLOWED = 1e-5
# Up to the first multiple of the bound, the rounding of products in float32 changes the norm of the result by less than
# 0.002. This needs float64 sums of float32 products over at most the second number of entries.
_FAR, _PART = 300, 1024


class Clipped(NamedTuple):
    """Matrices with the found singular values clipped."""

    matrices: Tensor
    """Unchanged bit for bit if nothing is above the bound."""
    sigma: Tensor
    """A lower estimate of the largest singular value before clipping, shape (matrices,)."""
    bases: Tensor
    """The bases from which to continue."""
    gain: Tensor
    """The relative gain of sigma in the last round, shape (matrices,); small once following has settled."""
    is_doubtful: Tensor
    """Whether singular values may still be above the bound, shape (matrices,).

    The space may hold too few vectors, or may not have settled.
    """


def clipping_bases(matrices: Tensor) -> Tensor:
    """Return bases to start from, shape (matrices, vectors, rows)."""
    count, rows = matrices.shape[:2]
    basis = start_basis(min(BLOCK, rows), rows, dtype=matrices.dtype, device=matrices.device)
    return basis.expand(count, -1, -1)


def clip_followed(matrices: Tensor, bound: float, bases: Tensor, rounds: int = 1) -> Clipped:
    """Clip the singular values above `bound`.

    Args:
        matrices: Shape (matrices, rows, columns), rows <= columns for the least work; float32 or float64.
        bound: The largest singular value, > 0.
        bases: What the last call returned, or `clipping_bases`, shape (matrices, vectors, rows).
        rounds: Number of products with each matrix and its transpose before clipping.

    Returns:
        The clipped matrices. Matrices that are not finite stay unchanged, and so do their bases.

    """
    if not matrices.numel():
        nothing = matrices.new_zeros(len(matrices))
        return Clipped(matrices, nothing, bases, nothing, nothing.bool())
    basis = probing(bases)
    images = [basis @ matrices]
    for _ in range(rounds):
        rows = orthonormal(images[-1] @ matrices.mT, basis)
        basis = torch.cat([basis, rows], 1)
        images.append(rows @ matrices)
    v = orthonormal(torch.cat([unit_rows(image) for image in images], 1))
    products = v @ matrices.mT
    scale = products.abs().amax((-2, -1), keepdim=True) + torch.finfo(products.dtype).tiny
    precise, limit = (products / scale).double(), bound / scale.double()
    gram = precise @ precise.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    sizes = square_root(gram)
    excess = sizes - limit * identity
    at_least = (sizes + limit * identity + square_root(excess @ excess.mT)) / 2
    share = identity - limit * torch.linalg.inv_ex(at_least)[0]
    known = rounds * bases.shape[1]
    best = leading_vectors(gram)
    now, before = _root(gram, best), _root(gram[:, :known, :known], leading_vectors(gram[:, :known, :known]))
    top = (now * scale[:, 0, 0]).to(matrices.dtype)
    coordinates = leading_subspace(gram, bases.shape[1], best)
    new = orthonormal(coordinates.mT.to(v.dtype) @ products)
    rows = share.to(v.dtype) @ v
    is_finite = (products.isfinite().all(-1) & rows.isfinite().all(-1) & new.isfinite().all(-1)[:, :1]).all(-1)
    acts = is_finite & (top > bound)
    # On a CPU, reading the flag is free, and saves a needless write.
    is_idle = acts.device.type == "cpu" and not any(acts.tolist())
    # If nothing is clipped, rounding must not change the matrix either.
    left, rows = (torch.where(acts[:, None, None], part, 0) for part in (products, rows))
    return Clipped(
        # The product follows the memory order of the entries.
        matrices
        if is_idle
        else torch.baddbmm(matrices, left.mT, rows, alpha=-1)
        if matrices.is_contiguous()
        else torch.baddbmm(matrices.mT, rows.mT, left, alpha=-1).mT,
        torch.where(is_finite, top, torch.nan),
        torch.where((is_finite & (top > 0))[:, None, None], new, bases),
        (1 - before / torch.where(now > 0, now, 1)).to(matrices.dtype).clamp(min=0),
        is_finite & _is_doubtful(gram, coordinates, limit, (now, before), matrices.shape[1]),
    )


def _is_doubtful(gram: Tensor, coordinates: Tensor, limit: Tensor, tops: tuple[Tensor, Tensor], rows: int) -> Tensor:
    """Tell whether more may be above `limit` than the space of `gram` shows; `tops`: sigma now, and a round before."""
    if coordinates.shape[-1] >= rows:
        return torch.zeros(len(gram), dtype=torch.bool, device=gram.device)  # the space is complete
    leading = coordinates.mT @ gram @ coordinates
    identity = torch.eye(leading.shape[-1], dtype=gram.dtype, device=gram.device)
    failed: Tensor = torch.linalg.cholesky_ex(leading - limit.square() * identity)[1]
    now, before = tops
    unsettled = (now > limit[:, 0, 0] * (1 - 10 * _SETTLED)) & (before < now * (1 - _SETTLED))
    return (failed == 0) | unsettled


def _root(gram: Tensor, eigenvector: Tensor) -> Tensor:
    """Return the root of the eigenvalue of an eigenvector."""
    column = eigenvector[..., None]
    square: Tensor = column.mT @ gram @ column
    return square.clamp(min=0).sqrt()[:, 0, 0]


def clip_exactly(matrix: Tensor, bound: float, *, is_rough: bool = False) -> Tensor:
    """Return the nearest matrix with norm at most `bound`, by a decomposition in float64.

    Rows and columns of zeros stay exactly zero, and matrices that are not finite do not change. Nothing waits
    for a GPU.

    Args:
        matrix: Shape (rows, columns).
        bound: The largest singular value, > 0.
        is_rough: Whether the result may have a norm of up to 1.002 `bound`. A long matrix on a CPU then takes half the
            time.

    """
    is_tall = len(matrix) > matrix.shape[1]
    wide_one = matrix.mT if is_tall else matrix
    if is_rough and matrix.device.type == "cpu":
        gram = _gram_in_parts(wide_one)
        is_finite = gram.isfinite().all()
        squares, u = torch.linalg.eigh(torch.where(is_finite, gram, 0))
        is_rough = bool(is_finite.tolist()) and max(squares[-1:].tolist(), default=0.0) <= (_FAR * bound) ** 2
    else:
        is_rough = False
    if not is_rough:
        is_finite = matrix.isfinite().all()
        wide_one = torch.where(is_finite, wide_one, 0).double()
        # Squares suffice. Near the bound they are as exact as float64, and the others do not matter.
        squares, u = torch.linalg.eigh(wide_one @ wide_one.mT)
    share = 1 - bound / squares.clamp(min=bound**2).sqrt()
    kept = torch.eye(len(u), dtype=u.dtype, device=u.device) - (u * share) @ u.mT
    clipped = kept.to(wide_one.dtype) @ wide_one
    nonzero = matrix.ne(0)
    in_use = nonzero.any(1, keepdim=True) & nonzero.any(0, keepdim=True)
    return torch.where(is_finite & in_use, (clipped.mT if is_tall else clipped).to(matrix.dtype), matrix)


def _gram_in_parts(matrix: Tensor) -> Tensor:
    """Return the product with the transposed matrix. Parts use the matrix's own precision, and their sum float64."""
    gram = torch.zeros(len(matrix), len(matrix), dtype=torch.float64)
    for part in torch.split(matrix, _PART, 1):
        gram += part @ part.mT
    return gram


def are_inside(matrices: Tensor, bound: float) -> Tensor:
    """Tell which matrices certainly have norms of at most `bound` (1 + 1e-5), shape (matrices,).

    Cholesky's factorization of bound^2 - W W^T exists only then. Nothing waits for the device.
    """
    return certified_shares(matrices, bound, (1.0,)).isfinite()


def certified_shares(matrices: Tensor, bound: float, shares: Sequence[float]) -> Tensor:
    """Return the least of `shares` for which a norm is certainly at most share * `bound`; infinity if there is none.

    See `are_inside` for the method. One product of each matrix with itself serves all shares.
    """
    scaled = matrices / bound
    scaled = wide(scaled.mT if scaled.shape[1] > scaled.shape[2] else scaled)
    gram = scaled @ scaled.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    found = torch.full(gram.shape[:1], torch.inf, dtype=gram.dtype, device=gram.device)
    for share in sorted(shares, reverse=True):
        factor, failed = torch.linalg.cholesky_ex((1 + _ALLOWED) * share**2 * identity - gram)
        found = torch.where((failed == 0) & factor.isfinite().all(-1).all(-1), share, found)
    return found
