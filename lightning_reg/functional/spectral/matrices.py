"""The largest singular value of dense matrices, and matrices without the singular values above a bound."""

import torch
from torch import Tensor

from lightning_reg.functional.tensors.precision import wide


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    try:
        values: Tensor = torch.linalg.eigvalsh(gram)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not list it
        # LAPACK gives up in float32 on some matrices with many equal eigenvalues, such as those of constant kernels.
        wider = torch.complex128 if gram.is_complex() else torch.float64
        values = torch.linalg.svdvals(gram.to(wider)).to(gram.real.dtype)
    return values.amax(-1)


def largest_singular_value(matrices: Tensor) -> Tensor:
    """Return the 2-norm of the matrices in the last two dimensions; NaN for one that is not finite.

    The square root of the largest eigenvalue of the smaller Gram matrix: a third of the time of the singular values.
    Each matrix is divided by its largest entry first, for squares of 1e-25 and 1e25 leave the range of float32.
    """
    if 0 in matrices.shape[-2:]:
        return matrices.abs().sum((-2, -1))
    # The norm is proportional to the weight, so a constant scale leaves the gradient as it is.
    largest = matrices.detach().abs().amax((-2, -1), keepdim=True)
    finite = largest.isfinite()
    scale = torch.where(finite & (largest > 0), largest, 1)
    scaled = torch.where(finite, matrices / scale, 0)  # torch.linalg raises for NaN
    gram = scaled @ scaled.mH if scaled.shape[-2] <= scaled.shape[-1] else scaled.mH @ scaled
    square = _largest_eigenvalue(gram)
    positive = square > 0
    # The square root of 0 has no derivative: the zero matrix gets the subgradient 0.
    norm = torch.where(positive, torch.where(positive, square, 1).sqrt(), 0) * scale[..., 0, 0]
    return torch.where(finite[..., 0, 0], norm, torch.nan)


def clip_singular_values(matrix: Tensor, bound: float, *, is_far: bool = False) -> Tensor:
    """Return the nearest matrix of norm `bound` at most, in the Frobenius norm: singular values above it become it.

    Args:
        matrix: Shape (rows, columns), finite.
        bound: The largest norm, > 0.
        is_far: Whether to compute in float64, for norms many times above the bound.

    """
    precise = matrix.double() if is_far else wide(matrix)
    try:
        u, s, vh = torch.linalg.svd(precise, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not list it
        u, s, vh = torch.linalg.svd(precise.double(), full_matrices=False)  # as above
    # What lies in the directions of smaller singular values is not touched.
    clipped: Tensor = precise - (u * (s - bound).clamp(min=0)) @ vh
    return clipped.to(matrix.dtype)
