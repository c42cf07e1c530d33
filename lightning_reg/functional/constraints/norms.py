"""Norms of units, moved into a range by one factor for each unit."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_reg.functional.penalties.group_sums import group_sums
from lightning_reg.functional.tensors.chunks import chunk_size, chunks
from lightning_reg.functional.tensors.shards import local_parts


def limit_norms_(weights: list[Tensor], max_norm: float, *, dim: int) -> None:
    """Scale each unit whose norm exceeds `max_norm` down to it, in place; other units do not change by a bit.

    A unit is the slice at one index along `dim`. A collective call where units are spread over ranks: only their norms
    are gathered.
    """
    _scale_(weights, lambda norms: (max_norm / norms).clamp(max=1), dim)


def normalize_(weights: list[Tensor], *, dim: int) -> None:
    """Scale each unit to norm 1, in place; a unit of zeros has no direction, and stays. See `limit_norms_`."""
    _scale_(weights, torch.reciprocal, dim)


def move_norms_(weights: list[Tensor], min_norm: float, max_norm: float, rate: float, *, dim: int) -> None:
    """Move the norm of each unit a share `rate` of the way into a range, in place. See `limit_norms_`.

    A unit of zeros has no direction, and stays.
    """
    _scale_(weights, lambda norms: 1 + rate * (norms.clamp(min_norm, max_norm) / norms - 1), dim)


@torch.no_grad()
def _scale_(weights: list[Tensor], factors_of: Callable[[Tensor], Tensor], dim: int) -> None:
    for (some,) in chunks(weights, size=chunk_size(weights), split=False) if weights else ():
        parts = local_parts(some)
        for part, squares in zip(parts, group_sums(some, parts, dim), strict=True):
            part.mul_(factors_of(squares.sqrt()).masked_fill_(squares == 0, 1.0))
