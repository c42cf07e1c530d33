r"""Singular values above a bound taken off from step to step, without a decomposition of the matrix.

After a step of training only a few singular values lie above the bound c. They are in the block Krylov space of the
left vectors of the step before; with orthonormal rows V that span its images, and :math:`S = (V W^T W V^T)^{1/2}`,

.. math:: W - W V^T \bigl(1 - c \max(S, c)^{-1}\bigr) V

has the singular values of :math:`W V^T` that were above c at c. What W does to zero rows and columns it does to their
part in :math:`W V^T` and in V: they stay exactly zero. All functions are of small matrices, and nothing waits for the
device. It is the nearest matrix inside if the space holds all vectors above the bound; an exact check now and then
keeps the promise.
"""

import torch
from torch import Tensor

from lightning_reg.functional.spectral.subspaces import (
    leading_subspace,
    leading_vectors,
    orthonormal,
    probing,
    square_root,
    start_basis,
    unit_rows,
)

BLOCK = 16


def clipping_bases(matrices: Tensor) -> Tensor:
    """Return bases to start from, shape (matrices, vectors, rows)."""
    count, rows = matrices.shape[:2]
    basis = start_basis(min(BLOCK, rows), rows, dtype=matrices.dtype, device=matrices.device)
    return basis.expand(count, -1, -1)


def clip_followed(matrices: Tensor, bound: float, bases: Tensor, rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Take off what is above `bound`.

    Args:
        matrices: Shape (matrices, rows, columns), rows <= columns for the least work; float32 or float64.
        bound: The largest singular value, > 0.
        bases: What the last call returned, or `clipping_bases`, shape (matrices, vectors, rows).
        rounds: Products with each matrix and its transpose before those that clip.

    Returns:
        The matrices, bit for bit as they were where nothing is above the bound; the largest singular value that was
        found, from below, shape (matrices,); and the new bases. What is not finite stays, and its basis too.

    """
    if not matrices.numel():
        return matrices, matrices.new_zeros(len(matrices)), bases
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
    clipped = matrices - products.mT @ (share.to(v.dtype) @ v)
    best = leading_vectors(gram)[..., None]
    top = ((best.mT @ gram @ best).clamp(min=0).sqrt() * scale)[:, 0, 0].to(matrices.dtype)
    coordinates = leading_subspace(gram, bases.shape[1])
    new = orthonormal(coordinates.mT.to(v.dtype) @ products)
    is_finite = clipped.isfinite().all((-2, -1)) & new.isfinite().all((-2, -1))
    acts = is_finite & (top > bound)
    return (
        torch.where(acts[:, None, None], clipped, matrices),
        torch.where(is_finite, top, torch.nan),
        torch.where((is_finite & (top > 0))[:, None, None], new, bases),
    )
