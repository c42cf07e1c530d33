"""The nuclear norm, the sum of singular values: its gradient, proximal operator, and distance from a minimum."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_reg.functional.spectral.matrices import rank_tolerance, singular_factors
from lightning_reg.functional.spectral.matrix_terms import as_matrix, from_matrix
from lightning_reg.functional.tensors.chunks import NumberOrTensor
from lightning_reg.functional.tensors.precision import reported, without_autocast
from lightning_reg.functional.tensors.shards import local_part, local_slice, whole


def nuclear_norm(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Callable[[], Tensor]]:
    r"""Return :math:`\|W\|_*`, and a function that returns :math:`U V^H` over the nonzero singular values.

    This is the subgradient of least norm. It is 0 at a zero matrix, and unique where singular values are repeated.
    """
    u, s, vh = singular_factors(matrix)
    return s.sum(), lambda: _signs(u, s, rank_tolerance(matrix, dtype)) @ vh


@torch.no_grad()
def soften_singular_values_(weight: Tensor, threshold: NumberOrTensor, dim: int | None) -> None:
    r"""Replace a weight by :math:`U \max(S - \tau, 0) V^T`, the proximal operator of the nuclear norm.

    Singular values up to the threshold become exactly zero. A threshold of 0 changes nothing. A collective call for a
    `DTensor`.

    Args:
        weight: Real or complex, with a dimension `dim`.
        threshold: :math:`\tau \ge 0`, the same for all entries.
        dim: The dimension along which the rows of the matrix lie; `None` for a stack of matrices.

    """
    tensor = whole(weight)
    with without_autocast(tensor.device):
        matrix = as_matrix(tensor, dim)
        u, s, vh = singular_factors(matrix)
        softened = (u * (s - threshold).clamp(min=0).unsqueeze(-2)) @ vh
        if isinstance(threshold, Tensor):  # 0 if the scaler of fp16 has skipped the step
            softened = torch.where(threshold == 0, matrix, softened)
    if isinstance(threshold, Tensor) or threshold:
        local_part(weight).copy_(local_slice(from_matrix(softened, tensor, dim), weight))


@torch.no_grad()
def nuclear_residual(weight: Tensor, grad: Tensor, dim: int | None) -> Tensor:
    r"""Return the distance, in the Frobenius norm, of :math:`-g` from the subdifferential of the nuclear norm.

    The subgradients at :math:`W = U S V^T` are all :math:`U V^T + P` with :math:`U^T P = 0`, :math:`P V = 0` and no
    singular value of P above 1. The part of :math:`-g - U V^T` in the row or column space of W counts whole; the
    singular values of the rest count by their excess over 1. Shape (). A collective call for `DTensor`s.
    """
    tensor, slope = whole(weight), whole(grad)
    with without_autocast(tensor.device):
        matrix, target = as_matrix(tensor, dim), -as_matrix(slope, dim)
        u, s, vh = singular_factors(matrix)
        tolerance = rank_tolerance(matrix, tensor.dtype)
        signs = _signs(u, s, tolerance)
        left, right = signs @ signs.mH, vh.mH @ _signs(vh.mH, s, tolerance).mH
        beyond = target - left @ target
        beyond = beyond - beyond @ right
        excess = (singular_factors(beyond)[1] - 1).clamp(min=0)
        inside = target - signs @ vh - beyond
        squares = inside.abs().square().sum() + excess.square().sum()
    return squares.sqrt().to(reported(tensor))


def _signs(vectors: Tensor, values: Tensor, tolerance: float) -> Tensor:
    """Return the singular vectors in columns, with zeros in place of those whose singular value is zero."""
    return vectors * (values > tolerance * values[..., :1]).unsqueeze(-2)
