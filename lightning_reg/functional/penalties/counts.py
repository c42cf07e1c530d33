"""Count the zero entries, or zero slices, of weights, and compute norms of many single weights for monitors.

This takes few kernel calls for many weights, and never waits for the device.
"""

from collections.abc import Iterable, Sequence
from itertools import compress

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.tensors.chunks import chunk_size, in_memory_order, short_rows
from lightning_reg.functional.tensors.shards import has_dtensors, sum_each_over_shards, whole
from lightning_reg.functional.tensors.weights import as_weights

__all__ = ["sparsity"]


def sparsity(weights: Tensor | Iterable[Tensor], *, threshold: float = 0.0, dim: int | None = None) -> Tensor:
    r"""Return the share of entries with :math:`|w| \le t`, or of slices with such entries only.

    Zero slices can be removed from a network: with `dim=0` they are dead output units or filters, with `dim=1` unused
    input units or channels. Exact: entries are counted, and NaN does not count as zero.

    Args:
        weights: Floating-point or complex tensors of any shapes, or a single one; DTensors count once over all ranks
            (a collective call).
        threshold: :math:`t`, >= 0; 0 counts exact zeros.
        dim: If given, count the slices along this dimension instead of the entries.

    Returns:
        The share in [0, 1], shape (), without gradient; NaN if there is nothing to count.

    Raises:
        TypeError: If `weights` holds anything but such tensors, `threshold` is not a number or `dim` not an int.
        ValueError: If `threshold` is negative, or a weight has no dimension `dim`.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.0, 0.0], [0.0, 3.0], [1.0, 2.0], [4.0, 5.0]])
        >>> sparsity([weight])
        tensor(0.3750)
        >>> sparsity([weight], dim=0)
        tensor(0.2500)

    """
    weights, threshold = as_weights(weights), _checks.non_negative("threshold", threshold)
    if not weights:
        return torch.full((), torch.nan)
    check_dim(weights, dim)
    return zero_share(weights, threshold, None if dim is None else [dim] * len(weights))


def zero_share(weights: list[Tensor], threshold: float, dims: Sequence[int] | None) -> Tensor:
    """Return the share of entries, or of slices along the dimension in `dims` for each weight, that are zero."""
    return zero_counts(weights, threshold, dims).sum() / sum(entry_counts(weights, dims))


def entry_counts(weights: Sequence[Tensor], dims: Sequence[int] | None) -> list[int]:
    """Return the number of entries of each weight, or of slices along its dimension in `dims`."""
    if dims is None:
        return [weight.numel() for weight in weights]
    return [weight.shape[dim] for weight, dim in zip(weights, dims, strict=True)]


def check_dim(weights: Iterable[Tensor], dim: int | None) -> None:
    """Raise if a weight has no dimension `dim`."""
    _checks.dimension("dim", dim)
    for weight in weights:
        if dim is not None and not -weight.ndim <= dim < weight.ndim:
            msg = (
                f"`dim` must be a dimension of every weight, got {dim} for one of shape {tuple(weight.shape)}."
                " Select weights that have it."
            )
            raise ValueError(msg)


# Below this number of entries, a sum in float64 costs less than the calls that avoid it.
_SMALL_ENTRIES = 1 << 14
_EUCLIDEAN = 2
# In float32, sums of squares between these lose nothing to underflow, and do not overflow.
_LEAST, _MOST = 1e-12, 1e15
# Up to this order, powers of float32 numbers are within the range of float64.
_SAFE_ORDER = 6
# Entries summed at once in float64, so that the copy stays in the cache.
_PART_ENTRIES = 1 << 16


def power_sums(weights: list[Tensor], p: float) -> Tensor:
    """Return the sum of abs(w)^`p` of each weight, shape (weights,); sharded weights are summed over all ranks."""
    return sum_each_over_shards(lambda parts: _norms(parts, p).pow(p), weights)


def power_norms(weights: list[Tensor], p: float) -> Tensor:
    """Return the `p`-norm of each weight as a vector, shape (weights,), even if `power_sums` would be 0."""
    if not has_dtensors(weights):
        return _norms(weights, p)
    if p > _SAFE_ORDER:  # rare enough to gather the weights: the sums that ranks would exchange leave the range
        return _norms([whole(weight) for weight in weights], p)
    return power_sums(weights, p).pow(1 / p)


def zero_counts(weights: list[Tensor], threshold: float, dims: Sequence[int] | None) -> Tensor:
    """Return the number of entries of each weight with abs(w) <= `threshold`, shape (weights,), in int64.

    With `dims`, count slices along that dimension that have such entries only. NaN does not count as zero.
    """
    if dims is None:
        return sum_each_over_shards(lambda parts: _zeros(parts, threshold), weights)
    slices = [_zero_slices(weight, threshold, dim) for weight, dim in zip(weights, dims, strict=True)]
    return torch.stack([count.to(weights[0].device) for count in slices])


def _norms(weights: list[Tensor], p: float) -> Tensor:
    weights = [weight.abs() if weight.is_complex() else weight for weight in weights]
    # In float32, squares of small weights would be 0.
    dtype = torch.float32 if weights[0].device.type == "mps" else torch.float64
    if p > _SAFE_ORDER:
        return torch.stack([scaled_norm(weight.to(dtype), p) for weight in weights])
    if weights[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(weights, p, dtype=dtype))
    is_fast = [p == _EUCLIDEAN and w.dtype == torch.float32 and w.numel() > _SMALL_ENTRIES for w in weights]
    fast = list(compress(weights, is_fast))
    exact = [weight for weight, is_one in zip(weights, is_fast, strict=True) if not is_one]
    fast_norms = iter(_euclidean_norms(fast) if fast else ())
    exact_norms = iter(torch._foreach_norm(exact, p, dtype=torch.float64) if exact else ())
    return torch.stack([next(fast_norms if is_one else exact_norms) for is_one in is_fast])


def scaled_norm(entries: Tensor, p: float) -> Tensor:
    """Return the `p`-norm of all entries, shape (), even if their powers leave the range of the type."""
    largest = entries.abs().amax() if entries.numel() else entries.new_zeros(())
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    norm: Tensor = torch.linalg.vector_norm(entries / scale, p) * scale
    return norm


def _euclidean_norms(weights: list[Tensor]) -> list[Tensor]:
    flats = [in_memory_order([weight])[0].reshape(-1) for weight in weights]
    norms = list(map(_norms_of_parts, flats))
    totals = torch._foreach_norm(norms, _EUCLIDEAN, dtype=torch.float64)
    # Usually all are in range: one comparison is enough.
    in_range = [_LEAST < total < _MOST for total in torch.stack(totals).tolist()]
    return [
        total if is_one else _precise_norm(flat) for total, flat, is_one in zip(totals, flats, in_range, strict=True)
    ]


def _norms_of_parts(flat: Tensor) -> Tensor:
    rows, rest = short_rows(flat)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    if not rest.numel():
        return norms
    return torch.cat([norms, torch.linalg.vector_norm(rest).reshape(1)])


def _precise_norm(flat: Tensor) -> Tensor:
    parts = torch._foreach_norm(torch.split(flat, _PART_ENTRIES), dtype=torch.float64)
    return torch.stack(parts).square().sum().sqrt()


def _zeros(weights: list[Tensor], threshold: float) -> Tensor:
    if not threshold:
        entries = torch.tensor([weight.numel() for weight in weights]).to(weights[0].device, non_blocking=True)
        return entries - torch.stack([torch.count_nonzero(weight) for weight in weights])
    return torch.stack([_small_entries(weight, threshold) for weight in weights])


def _small_entries(weight: Tensor, threshold: float) -> Tensor:
    # In parts, so that temporaries stay in the cache.
    flat = in_memory_order([weight])[0].reshape(-1)
    parts = torch.split(flat, chunk_size([weight]))
    return torch.stack([(part.abs() <= threshold).sum() for part in parts]).sum()


@torch.no_grad()
def _zero_slices(weight: Tensor, threshold: float, dim: int) -> Tensor:
    others = [other for other in range(weight.ndim) if other != dim % weight.ndim]
    # This also works for a `DTensor`: the sum runs over the ranks with parts of a slice.
    counts = (~(weight.abs() <= threshold)).sum(others) if others else ~(weight.abs() <= threshold)
    return (whole(counts) == 0).sum()
