"""Sums over groups of entries, the slices along one dimension, on all ranks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.functional.tensors.shards import sum_over_split_groups

# Entries of whole groups processed at once: intermediate results stay in the cache on a CPU.
_BLOCK_ENTRIES = 1 << 17


def group_sums(weights: Sequence[Tensor], parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Return the sum of squares of each group, with extent 1 in each other dimension of its weight.

    In float32 at least; a collective call if groups are spread over ranks.

    Args:
        weights: The weights that define the groups.
        parts: The tensors to sum, with the shapes of this rank's parts of `weights`.
        dim: The dimension along which groups lie.

    """
    squares = []
    for weight, part in zip(weights, parts, strict=True):
        moduli = part.abs() if part.is_complex() else part
        wide = moduli.to(torch.promote_types(moduli.dtype, torch.float32))
        squares.append(group_sum(wide.square(), weight, dim))
    return sum_over_split_groups(squares, weights, dim)


def group_sum(entries: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Return the sum over each group of `entries`, this rank's part of a tensor like `weight`."""
    others = other_dims(weight, dim)
    return entries.sum(others, keepdim=True) if others else entries.clone()


def other_dims(weight: Tensor, dim: int) -> tuple[int, ...]:
    """Return the dimensions within a group."""
    return tuple(other for other in range(weight.ndim) if other != dim % weight.ndim)


def group_entries(weight: Tensor, dim: int) -> int:
    """Return the number of entries in a group over all ranks."""
    return weight.numel() // weight.shape[dim] if weight.numel() else 0


def group_blocks(*tensors: Tensor, dim: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of some whole groups of plain tensors of one shape, which has entries, at a time."""
    first = tensors[0]
    count = first.shape[dim]
    size = max(1, _BLOCK_ENTRIES * count // first.numel()) if first.device.type == "cpu" else count
    yield from zip(*(torch.split(tensor, size, dim) for tensor in tensors), strict=True)
