"""Optimality residuals: the distance of the negative gradient from the subdifferential of the penalty."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.penalties.elementwise import end_of, within
from lightning_reg.functional.penalties.group_sums import group_blocks, group_entries, group_sums
from lightning_reg.functional.tensors.chunks import chunk_size, chunks
from lightning_reg.functional.tensors.shards import has_dtensors, local_parts


@torch.no_grad()
def elementwise_residual(weights: Sequence[Tensor], grads: Sequence[Tensor], *, l1: float, l2: float = 0.0) -> Tensor:
    r"""Return the largest distance of any :math:`-g_i` from the subdifferential of :math:`l_1 |w_i| + l_2 w_i^2`.

    An entry that is not 0 has one subgradient, :math:`l_1 \operatorname{sign}(w) + 2 l_2 w`; an entry of 0 has all
    of :math:`[-l_1, l_1]`. With factors of opposite signs, see `elementwise_penalty`.
    Shape (); 0 without entries; only over the entries of this rank.
    """
    worst = []
    own, slopes = local_parts(list(weights)), local_parts(list(grads))
    for position in range(len(own)):
        # In parts that stay in the cache.
        pair = own[position : position + 1], slopes[position : position + 1]
        for some, some_grads in chunks(*pair, size=chunk_size(pair[0])) if pair[0][0].numel() else ():
            (weight,), (grad,) = within(some, end_of(l1, l2)), some_grads
            slope = grad.add(weight.sgn(), alpha=l1)
            if l2:
                slope.add_(weight, alpha=2 * l2)
            size = slope.abs()
            worst.append(size.sub_((weight == 0).to(size.dtype), alpha=l1).amax().clamp_(min=0).float())
    return _largest(worst, weights)


@torch.no_grad()
def group_residual(weights: Sequence[Tensor], grads: Sequence[Tensor], *, dim: int) -> Tensor:
    r"""Return the largest distance (2-norm) of any group's :math:`-g` from the subdifferential of `group_lasso`.

    A group that is not 0 has one subgradient, :math:`\sqrt{n} w / \|w\|_2`; a group of zeros has all vectors of length
    at most :math:`\sqrt{n}`. Shape (); 0 without groups; only over the groups of which this rank has a part. A
    collective call if groups are spread over ranks.
    """
    values: list[Tensor] = []
    for weight, grad in zip(weights, grads, strict=True):
        if has_dtensors([weight]) or not weight.numel():
            values += _group_residuals(weight, grad, dim)
        else:
            for block, slope in group_blocks(weight, grad, dim=dim):
                values += _group_residuals(block, slope, dim)
    return _largest(values, weights)


def _group_residuals(weight: Tensor, grad: Tensor, dim: int) -> list[Tensor]:
    """Return the largest residual of groups of one weight, if there are any."""
    (part,), (slope,) = local_parts([weight]), local_parts([grad])
    root = group_entries(weight, dim) ** 0.5
    (squares,) = group_sums([weight], [part], dim)
    lengths = squares.sqrt()
    errors = slope.addcmul(part, torch.where(lengths > 0, root / lengths, 0.0))
    (squares,) = group_sums([weight], [errors], dim)
    if not squares.numel():
        return []
    return [(squares.sqrt() - torch.where(lengths > 0, 0.0, root)).amax().clamp_(min=0).float()]


def _largest(values: list[Tensor], weights: Sequence[Tensor]) -> Tensor:
    return largest_residual(values) if values else torch.zeros((), device=local_parts(list(weights))[0].device)


def largest_residual(residuals: Sequence[Tensor]) -> Tensor:
    """Return the largest of some residuals, shape (), on the device of the first one; NaN if one is NaN."""
    return torch.stack([residual.to(residuals[0].device) for residual in residuals]).amax()
