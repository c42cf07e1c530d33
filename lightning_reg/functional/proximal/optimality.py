"""Optimality residuals: the distance of the negative gradient from the subdifferential of the penalty."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.penalties.elementwise import end_of, within
from lightning_reg.functional.penalties.group_sums import group_entries, group_sums
from lightning_reg.functional.tensors.shards import local_parts


@torch.no_grad()
def elementwise_residual(weights: Sequence[Tensor], grads: Sequence[Tensor], *, l1: float, l2: float = 0.0) -> Tensor:
    r"""Return the largest distance of any :math:`-g_i` from the subdifferential of :math:`l_1 |w_i| + l_2 w_i^2`.

    An entry that is not 0 has one subgradient, :math:`l_1 \operatorname{sign}(w) + 2 l_2 w`; an entry of 0 has all
    of :math:`[-l_1, l_1]`. With factors of opposite signs, see `elementwise_penalty`.
    Shape (); 0 without entries; only over the entries of this rank.
    """
    worst = []
    ended = within(local_parts(list(weights)), end_of(l1, l2))
    for weight, grad in zip(ended, local_parts(list(grads)), strict=True):
        if weight.numel():
            slope = grad.add(weight, alpha=2 * l2).add_(weight.sgn(), alpha=l1).abs()
            worst.append(slope.sub_((weight == 0).to(slope.dtype), alpha=l1).clamp_(min=0).amax().float())
    return _largest(worst, weights)


@torch.no_grad()
def group_residual(weights: Sequence[Tensor], grads: Sequence[Tensor], *, dim: int) -> Tensor:
    r"""Return the largest distance (2-norm) of any group's :math:`-g` from the subdifferential of `group_lasso`.

    A group that is not 0 has one subgradient, :math:`\sqrt{n} w / \|w\|_2`; a group of zeros has all vectors of length
    at most :math:`\sqrt{n}`. Shape (); 0 without groups; only over the groups of which this rank has a part. A
    collective call if groups are spread over ranks.
    """
    parts, slopes = local_parts(list(weights)), local_parts(list(grads))
    roots = [group_entries(weight, dim) ** 0.5 for weight in weights]
    lengths = [squares.sqrt() for squares in group_sums(weights, parts, dim)]
    errors = []
    for part, slope, length, root in zip(parts, slopes, lengths, roots, strict=True):
        direction = torch.where(length > 0, root / length, 0.0)
        errors.append(slope + part * direction)
    worst = []
    for squares, length, root in zip(group_sums(weights, errors, dim), lengths, roots, strict=True):
        if squares.numel():
            worst.append((squares.sqrt() - torch.where(length > 0, 0.0, root)).clamp_(min=0).amax().float())
    return _largest(worst, weights)


def _largest(values: list[Tensor], weights: Sequence[Tensor]) -> Tensor:
    device = local_parts(list(weights))[0].device
    # Python's `max` would lose NaN.
    return torch.stack([value.to(device) for value in values]).amax() if values else torch.zeros((), device=device)
