"""Zeros in a pattern that hardware has use for: at most n of every m neighbours are left."""

import torch
from torch import Tensor

from lightning_reg.functional.tensors.shards import local_part, local_slice, shard_groups, whole

# Entries that are worked on at once: what is computed on the way stays in a cache on a CPU, and small on a GPU.
_CPU_ENTRIES = 1 << 18
_GPU_ENTRIES = 1 << 24
# Of so few, all pairs are compared faster on a CPU than they are sorted: of 4 in a third of the time.
_FEW = 8
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def keep_largest_(weights: list[Tensor], keep: int, m: int, *, dim: int) -> None:
    """Make all but the `keep` largest magnitudes of every `m` entries along `dim` zero, in place.

    Of equal ones the first stay. A sharded weight is gathered only where the groups of `m` are spread over ranks; one
    at a time then, a collective call.
    """
    for weight in weights:
        if shard_groups(weight, lambda sharded, own=dim % weight.ndim: sharded == own):  # type: ignore[misc]
            full = whole(weight)
            _keep_(full, keep, m, dim)
            local_part(weight).copy_(local_slice(full, weight))
        else:
            _keep_(local_part(weight), keep, m, dim)


@torch.no_grad()
def leave_(weight: Tensor, left: Tensor) -> None:
    """Make entries zero, in place, where the mask `left` is false, infinite ones and NaN, too.

    Bits are multiplied: on a CPU a seventh of the time of `masked_fill_`, which has a branch for each entry.
    """
    weight.view(_INTEGERS[weight.dtype.itemsize]).mul_(left)


def _keep_(weight: Tensor, keep: int, m: int, dim: int) -> None:
    if not weight.numel():
        return
    dim %= weight.ndim
    groups = weight.view(*weight.shape[:dim], -1, m, *weight.shape[dim + 1 :]).movedim(dim + 1, 0)
    entries = _CPU_ENTRIES if weight.device.type == "cpu" else _GPU_ENTRIES
    for part in torch.split(groups, max(1, entries * groups.shape[1] // weight.numel()), dim=1):
        sizes = part.abs().nan_to_num_(torch.inf, torch.inf).contiguous()
        if weight.device.type == "cpu" and m <= _FEW:
            leave_(part, _ranks(sizes) < keep)
        else:
            part.scatter_(0, sizes.sort(dim=0, descending=True, stable=True).indices[keep:], 0.0)


def _ranks(sizes: Tensor) -> Tensor:
    """Return how many come before each entry along dimension 0; of equal ones the first does."""
    ranks = torch.zeros(sizes.shape, dtype=torch.int8)
    for index, one in enumerate(sizes):
        for later in range(index + 1, len(sizes)):
            comes_before = one >= sizes[later]
            ranks[later] += comes_before
            ranks[index] += ~comes_before
    return ranks
