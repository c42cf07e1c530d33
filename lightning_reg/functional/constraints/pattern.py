"""Zeros in a pattern that hardware has use for: at most n of every m neighbours are left."""

import torch
from torch import Tensor

from lightning_reg.functional.tensors.chunks import chunk_size
from lightning_reg.functional.tensors.shards import local_part, local_slice, shard_groups, whole


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


def _keep_(weight: Tensor, keep: int, m: int, dim: int) -> None:
    if not weight.numel():
        return
    rows = weight.movedim(dim, 0)
    # Some groups at a time, whose temporaries stay in the cache on a CPU.
    for part in torch.split(rows, m * max(1, chunk_size([weight]) // (m * rows[0].numel()))):
        groups = part.view(-1, m, *part.shape[1:])
        sizes = groups.abs()
        # How many are before an entry: m comparisons of all entries are faster than to sort m at a time.
        ranks = torch.zeros(groups.shape, dtype=torch.int16, device=weight.device)
        for index in range(m):
            one = sizes[:, index : index + 1]
            ranks[:, :index] += one > sizes[:, :index]
            ranks[:, index + 1 :] += one >= sizes[:, index + 1 :]
        groups.masked_fill_(ranks >= keep, 0.0)
