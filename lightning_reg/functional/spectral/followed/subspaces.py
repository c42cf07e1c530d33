"""Small matrices from subspaces of large ones: bases, leading vectors and matrix functions.

The eigenvalues of `torch.linalg` would wait for the device, and raise for NaN. These functions use only products, and
factorizations without checks. A matrix that is not finite does not affect others in a batch.
"""

import torch
from torch import Tensor

# After the first projection, a unit row without a new part is shorter than the first number. Only the float32
# rounding of the basis remains. The second projection should remove nothing. A row with a new part stays longer than
# the second number.
_NOTHING = 1e-5, 0.5
# This shift keeps a matrix positive if rounding has made it singular.
_SHIFT = 1e-13
_ROOT_STEPS = 40


def unit_rows(rows: Tensor) -> Tensor:
    """Return each row divided by its norm, at any scale; zero stays zero."""
    scaled = rows / (rows.abs().amax(-1, keepdim=True) + torch.finfo(rows.dtype).tiny)
    lengths: Tensor = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / (lengths + torch.finfo(rows.dtype).tiny)


def orthonormal(rows: Tensor, basis: Tensor | None = None) -> Tensor:
    """Return orthonormal rows that span, with `basis`, the space of `rows` and `basis`; zero for rows that add nothing.

    If the new part of a row is only rounding, the result is an arbitrary direction. It does no harm.

    Args:
        rows: Shape (..., rows, entries).
        basis: Orthonormal rows, or zero ones, shape (..., others, entries), to which the result is orthogonal.

    """
    new = unit_rows(rows.double())
    known = None if basis is None else basis.double()
    for nothing in _NOTHING:
        if known is not None:
            new = new - (new @ known.mT) @ known
            lengths: Tensor = torch.linalg.vector_norm(new, dim=-1, keepdim=True)
            new = torch.where(lengths > nothing, new / torch.where(lengths == 0, 1, lengths), 0)
        gram = new @ new.mT
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky_ex(gram + _SHIFT * identity)[0]
        is_new = factor.diagonal(dim1=-2, dim2=-1)[..., None] > nothing
        new = unit_rows(torch.where(is_new, torch.linalg.solve_triangular(factor, new, upper=False), 0))
    return new.to(rows.dtype)


def leading_vectors(grams: Tensor, squarings: int = 12) -> Tensor:
    """Return a unit eigenvector of the largest eigenvalue of each positive matrix, shape (..., entries); 0 for zero.

    The method takes the power 2^squarings of the matrix. Vectors of smaller eigenvalues remain mixed in. They lower the
    resulting eigenvalue by a share of less than 1 / (e 2^squarings).
    """
    power = _over_trace(grams)
    for _ in range(squarings):
        power = _over_trace(power @ power)
    best = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    columns = power.take_along_dim(best[..., None, None], -1)[..., 0]
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=-1, keepdim=True)
    return columns / (lengths + torch.finfo(columns.dtype).tiny)


def leading_subspace(grams: Tensor, size: int, first: Tensor) -> Tensor:
    """Return orthonormal columns near the span of the eigenvectors of the `size` largest eigenvalues.

    Args:
        grams: Positive matrices, shape (..., entries, entries).
        size: The number of columns.
        first: What `leading_vectors` returns. The first column starts from it. Without it, the columns would mix many
            eigenvectors of nearly equal eigenvalues, and lose a part of the best vector.

    """
    power = _over_trace(grams)
    for _ in range(2):
        power = _over_trace(power @ power)
    others = power[..., power.shape[-1] - size + 1 :]
    columns: Tensor = torch.linalg.qr(torch.cat([first[..., None], others], -1))[0]
    for _ in range(2):
        columns = torch.linalg.qr(power @ columns)[0]
    return columns


def square_root(matrices: Tensor) -> Tensor:
    """Return the root of each positive matrix by the Newton-Schulz iteration. Errors are 1e-8 of the largest root."""
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


def start_basis(vectors: int, entries: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return fixed orthonormal rows. Ranks agree, resumed runs repeat, and no global generator changes."""
    if vectors == entries:
        return torch.eye(entries, dtype=dtype, device=device)
    rows = torch.empty(vectors, entries, dtype=dtype).normal_(generator=torch.Generator().manual_seed(0))
    return orthonormal(rows).to(device, non_blocking=True)


def probing(bases: Tensor) -> Tensor:
    """Return bases with a random row in place of the last one, unless they span everything.

    A basis exactly orthogonal to the largest singular vector would never find it.
    """
    if bases.shape[-2] == bases.shape[-1]:
        return bases
    probe = start_basis(1, bases.shape[-1], dtype=bases.dtype, device=bases.device)
    kept = bases[..., :-1, :]
    return torch.cat([kept, orthonormal(probe.expand(*bases.shape[:-2], -1, -1), kept)], -2)
