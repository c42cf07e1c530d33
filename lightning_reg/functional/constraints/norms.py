"""Norms of units, brought into a range by one factor for each unit."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_reg.functional.penalties.group_sums import group_sums
from lightning_reg.functional.tensors.chunks import chunk_size, chunks
from lightning_reg.functional.tensors.shards import local_parts


def limit_norms_(weights: list[Tensor], max_norm: float, *, dim: int) -> None:
    """Bring each unit of a norm above `max_norm` to it, in place; units inside stay as they are, bit for bit.

    A unit is what one index along `dim` holds. A collective call where units are spread over ranks; nothing is gathered
    but their norms.
    """
    _scale_(weights, lambda norms: (max_norm / norms).clamp(max=1), dim)


def normalize_(weights: list[Tensor], *, dim: int) -> None:
    """Bring each unit to norm 1, in place; one that is zero has no direction, and stays. See `limit_norms_`."""
    _scale_(weights, torch.reciprocal, dim)


def move_norms_(weights: list[Tensor], min_norm: float, max_norm: float, rate: float, *, dim: int) -> None:
    """Bring the norm of each unit a share `rate` of the way into a range, in place. See `limit_norms_`.

    One that is zero has no direction, and stays.
    """
    _scale_(weights, lambda norms: 1 + rate * (norms.clamp(min_norm, max_norm) / norms - 1), dim)


@torch.no_grad()
def _scale_(weights: list[Tensor], factors_of: Callable[[Tensor], Tensor], dim: int) -> None:
    for (some,) in chunks(weights, size=chunk_size(weights), split=False) if weights else ():
        parts = local_parts(some)
        for part, squares in zip(parts, group_sums(some, parts, dim), strict=True):
            part.mul_(factors_of(squares.sqrt()).masked_fill_(squares == 0, 1.0))
