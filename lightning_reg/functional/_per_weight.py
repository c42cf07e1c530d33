"""What the monitors want to know of every weight by itself: many weights, few kernel calls, no synchronisation."""

import torch
from torch import Tensor

from lightning_reg.functional._groups import group_size, in_memory_order, short_rows
from lightning_reg.functional._shards import sum_each_over_shards, whole

# Below this, summing in float64 costs less than the calls that do without.
_SMALL_ENTRIES = 1 << 14
_EUCLIDEAN = 2


def power_sums(weights: list[Tensor], p: float) -> Tensor:
    """Return the sum of abs(w)^`p` of each weight, shape (weights,); of a sharded one over all ranks."""
    return sum_each_over_shards(lambda parts: _power_sums(parts, p), weights)


def zero_counts(weights: list[Tensor], threshold: float, dim: int | None) -> Tensor:
    """Return for each weight how many entries have abs(w) <= `threshold`, shape (weights,), in int64.

    With `dim`, how many slices along that dimension consist of such entries alone. NaN is no zero.
    """
    if dim is None:
        return sum_each_over_shards(lambda parts: _zeros(parts, threshold), weights)
    return torch.stack([_zero_slices(weight, threshold, dim).to(weights[0].device) for weight in weights])


def _power_sums(weights: list[Tensor], p: float) -> Tensor:
    weights = [weight.abs() if weight.is_complex() else weight for weight in weights]
    if weights[0].device.type == "cpu":
        is_fast = [p == _EUCLIDEAN and w.dtype == torch.float32 and w.numel() > _SMALL_ENTRIES for w in weights]
        exact = [weight for weight, fast in zip(weights, is_fast, strict=True) if not fast]
        exact_norms = iter(torch._foreach_norm(exact, p, dtype=torch.float64) if exact else ())
        norms = [
            _euclidean_norm(weight) if fast else next(exact_norms)
            for weight, fast in zip(weights, is_fast, strict=True)
        ]
    else:
        double = any(weight.dtype == torch.float64 for weight in weights)
        norms = list(torch._foreach_norm(weights, p, dtype=torch.float64 if double else torch.float32))
    return torch.stack(norms).pow(p)


def _euclidean_norm(weight: Tensor) -> Tensor:
    flat = in_memory_order([weight])[0].reshape(-1)
    rows, rest = short_rows(flat)
    norms = torch.linalg.vector_norm(rows, dim=1)
    rest_norm = torch.linalg.vector_norm(rest, dtype=torch.float64)
    total: Tensor = torch.linalg.vector_norm(torch.cat([norms, rest_norm.reshape(1)]))
    return total


def _zeros(weights: list[Tensor], threshold: float) -> Tensor:
    if not threshold:
        entries = torch.tensor([weight.numel() for weight in weights]).to(weights[0].device, non_blocking=True)
        return entries - torch.stack([torch.count_nonzero(weight) for weight in weights])
    return torch.stack([_small_entries(weight, threshold) for weight in weights])


def _small_entries(weight: Tensor, threshold: float) -> Tensor:
    # In parts, whose temporaries stay in the cache.
    flat = in_memory_order([weight])[0].reshape(-1)
    parts = torch.split(flat, group_size([weight]))
    return torch.stack([(part.abs() <= threshold).sum() for part in parts]).sum()


@torch.no_grad()
def _zero_slices(weight: Tensor, threshold: float, dim: int) -> Tensor:
    others = [other for other in range(weight.ndim) if other != dim % weight.ndim]
    # Of a `DTensor` too: the sum goes over the ranks that hold parts of a slice.
    counts = (~(weight.abs() <= threshold)).sum(others) if others else ~(weight.abs() <= threshold)
    return (whole(counts) == 0).sum()
