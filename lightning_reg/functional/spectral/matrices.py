"""The largest singular value of dense matrices, and clipping of singular values, by LAPACK and past its failures.

LAPACK's float32 eigenvalues of a Gram matrix with zero rows and columns (of pruned weights) are sometimes NaN, without
an error, and it sometimes gives up if many eigenvalues are equal. So zero lines are removed first, and a computation
that still fails is repeated in float64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.tensors.precision import wide

# Shares of the exponents of a dtype: where squares come near its limits, and how far scales may go.
_FAR, _FARTHEST = 0.4, 0.8


def lines_in_use(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows and which columns are not zero in all matrices, boolean; waits for the device where used."""
    entries = matrices.detach().ne(0).flatten(0, -3) if matrices.ndim > 2 else matrices.detach().ne(0)[None]  # noqa: PLR2004
    return entries.any(2).any(0), entries.any(1).any(0)


def without_zero_lines(matrices: Tensor) -> Tensor:
    """Return the matrices without the rows and columns that are zero in all of them: their norms are the same."""
    rows, columns = lines_in_use(matrices)
    if not rows.all():
        matrices = matrices[..., rows, :]
    return matrices if columns.all() else matrices[..., columns]


def scale_of(largest: Tensor) -> Tensor:
    """Return a power of two by which to divide entries of at most `largest` before they are squared.

    1 where squares are within the range of the type, or `largest` is not finite. Never so near to its limits that the
    inverse, or a gradient times it, would be subnormal.
    """
    limit = math.log2(torch.finfo(largest.dtype).max)
    exponent = largest.log2().floor().clamp(-math.floor(_FARTHEST * limit), math.floor(_FARTHEST * limit))
    return torch.where(largest.isfinite() & (exponent.abs() > _FAR * limit), exponent.exp2(), 1)


def eigenvalue_work(shape: Sequence[int]) -> float:
    """Return about how many operations `largest_singular_value` of a matrix takes, at the speed of products."""
    short, long = sorted(shape[-2:])
    return 2.0 * short**2 * long + 10.0 * short**3


def largest_singular_value(matrices: Tensor) -> Tensor:
    """Return the 2-norm of the matrices in the last two dimensions; NaN for one that is not finite.

    The square root of the largest eigenvalue of the smaller Gram matrix: a third of the time of the singular values.
    Each matrix is scaled first, because squares of 1e-25 and 1e25 leave the range of float32.
    """
    if matrices.numel():
        matrices = without_zero_lines(matrices)
    if not matrices.numel():
        return matrices.abs().sum((-2, -1))
    # The norm is proportional to the weight, so a constant scale leaves the gradient as it is.
    largest = matrices.detach().abs().amax((-2, -1), keepdim=True)
    finite, scale = largest.isfinite(), scale_of(largest)
    scaled = torch.where(finite, matrices * scale.reciprocal(), 0)  # torch.linalg raises for NaN
    gram = scaled @ scaled.mH if scaled.shape[-2] <= scaled.shape[-1] else scaled.mH @ scaled
    square = _largest_eigenvalue(gram)
    # The square root of 0 has no derivative: the zero matrix gets the subgradient 0.
    vanishes = square <= 0
    norm = torch.where(vanishes, 0, torch.where(vanishes, 1, square).sqrt()) * scale[..., 0, 0]
    return torch.where(finite[..., 0, 0], norm, torch.nan)


def _largest_eigenvalue(grams: Tensor) -> Tensor:
    values = _eigenvalues(grams)
    if values is None:
        values = _eigenvalues(grams.to(torch.complex128 if grams.is_complex() else torch.float64))
    if values is None:
        values = torch.linalg.svdvals(grams.to(torch.complex128 if grams.is_complex() else torch.float64))
    return values.amax(-1).to(grams.real.dtype)


def _eigenvalues(grams: Tensor) -> Tensor | None:
    """Return the eigenvalues, differentiably; None if LAPACK fails with an error or with NaN."""
    try:
        if torch.is_grad_enabled() and grams.requires_grad:
            # The gradient is made of the vectors, which fail more often.
            values, vectors = torch.linalg.eigh(grams)
            failed = vectors.isnan().any() | values.isnan().any()
        else:
            values = torch.linalg.eigvalsh(grams)
            failed = values.isnan().any()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not list it
        return None
    return None if failed else values


def clip_singular_values(matrix: Tensor, bound: float, *, is_far: bool = False) -> Tensor:
    """Return the nearest matrix of norm `bound` at most, in the Frobenius norm: larger singular values become `bound`.

    Rows and columns of zeros stay exactly zero.

    Args:
        matrix: Shape (rows, columns), finite.
        bound: The largest norm, > 0.
        is_far: Whether to compute in float64, for norms many times above the bound.

    """
    rows, columns = lines_in_use(matrix)
    core = matrix[rows][:, columns]
    if not core.numel():
        return matrix
    precise = core.double() if is_far else wide(core)
    u, s, vh = singular_factors(precise)
    # The directions of smaller singular values are not touched.
    clipped = precise - (u * (s - bound).clamp(min=0)) @ vh
    result = torch.zeros_like(matrix)
    result[rows.nonzero(), columns.nonzero()[:, 0]] = clipped.to(matrix.dtype)
    return result


def singular_factors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin U, s and V^H of a matrix, NaN if it is not finite; in its dtype, also where float64 had to help.

    LAPACK itself waits for the device.
    """
    finite = matrix.isfinite().all()
    safe = torch.where(finite, matrix, 0)  # torch.linalg raises for NaN
    factors = _singular_factors(safe)
    if factors is None:
        factors = _singular_factors(safe.to(torch.complex128 if safe.is_complex() else torch.float64))
    if factors is None:
        msg = f"LAPACK finds no singular value decomposition of a matrix of shape {tuple(matrix.shape)}."
        raise RuntimeError(msg)
    u, s, vh = (torch.where(finite, factor, torch.nan) for factor in factors)
    return u.to(matrix.dtype), s.to(matrix.real.dtype), vh.to(matrix.dtype)


def rank_tolerance(matrix: Tensor, dtype: torch.dtype) -> float:
    """Return the share of the largest singular value up to which others are rounding, in a weight of type `dtype`.

    It is the share of NumPy's `matrix_rank`. In half precision it is one rounding, because entries are rounded far more
    coarsely than the numbers from which they were computed.
    """
    eps = torch.finfo(dtype).eps
    return eps if dtype.itemsize <= 2 else eps * max(matrix.shape[-2:])  # noqa: PLR2004  # bytes: half precision


def _singular_factors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return U, s and V^H; None if LAPACK fails."""
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not list it
        return None
    failed = u.isnan().any() | s.isnan().any() | vh.isnan().any()
    return None if failed[None].tolist()[0] else (u, s, vh)
