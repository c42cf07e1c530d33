"""Small matrices that a subspace makes of a large one: bases, leading vectors, functions of symmetric matrices.

`torch.linalg`'s eigenvalues would wait for the device, and raise for NaN; these are products, and factorizations that
check nothing. What is not finite stays with its own matrix of a batch.
"""

import torch
from torch import Tensor

# Directions that are so short beside the rows that they come from are rounding, and are left out.
_ROUNDING = 5e-3
_ROOT_STEPS = 40


def unit_rows(rows: Tensor) -> Tensor:
    """Return each row over its norm, whatever its scale; zero stays zero."""
    scaled = rows / (rows.abs().amax(-1, keepdim=True) + torch.finfo(rows.dtype).tiny)
    lengths: Tensor = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / (lengths + torch.finfo(rows.dtype).tiny)


def orthonormal(rows: Tensor) -> Tensor:
    """Return T, shape (..., rows, rows), for which rows of T R are orthonormal, and zero where R has no further one.

    The first rows of T R span what the first rows of R do. Rows of R have unit norm, or are zero.
    """
    # Twice: what rounding has made of a row without anything new, the second time shows as nothing new.
    precise = rows.double()
    transform = _orthonormalized(precise)
    again = transform @ precise
    lengths: Tensor = torch.linalg.vector_norm(again, dim=-1, keepdim=True)
    lengths = torch.where(lengths == 0, 1, lengths)
    return (_orthonormalized(again / lengths) @ (transform / lengths)).to(rows.dtype)


def _orthonormalized(rows: Tensor) -> Tensor:
    gram = rows @ rows.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky_ex(gram + (_ROUNDING / 2) ** 2 * identity)[0]
    transform = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    is_new = factor.diagonal(dim1=-2, dim2=-1) > _ROUNDING
    return torch.where(is_new[..., None], transform, 0)


def leading_vectors(grams: Tensor, squarings: int = 12) -> Tensor:
    """Return a unit eigenvector of the largest eigenvalue of each positive matrix, shape (..., entries); 0 for zero.

    By the power 2^squarings of the matrix: what smaller eigenvalues are mixed in lowers the largest by a share of less
    than 1 / (e 2^squarings).
    """
    power = _over_trace(grams)
    for _ in range(squarings):
        power = _over_trace(power @ power)
    best = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    columns = power.take_along_dim(best[..., None, None], -1)[..., 0]
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=-1, keepdim=True)
    return columns / (lengths + torch.finfo(columns.dtype).tiny)


def leading_subspace(grams: Tensor, size: int) -> Tensor:
    """Return orthonormal columns near the span of the eigenvectors of the `size` largest eigenvalues."""
    power = _over_trace(grams)
    for _ in range(2):
        power = _over_trace(power @ power)
    columns: Tensor = torch.linalg.qr(power[..., -size:])[0]
    for _ in range(2):
        columns = torch.linalg.qr(power @ columns)[0]
    return columns


def square_root(matrices: Tensor) -> Tensor:
    """Return the root of each positive matrix, by Newton and Schulz's iteration; good to 1e-8 of the largest one."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True) + torch.finfo(matrices.dtype).tiny
    root, inverse = matrices / norms, identity.expand_as(matrices)
    for _ in range(_ROOT_STEPS):
        step = (3 * identity - inverse @ root) / 2
        root, inverse = root @ step, step @ inverse
    return root * norms.sqrt()


def _over_trace(matrices: Tensor) -> Tensor:
    trace: Tensor = matrices.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    return matrices / (trace[..., None, None] + torch.finfo(trace.dtype).tiny)
