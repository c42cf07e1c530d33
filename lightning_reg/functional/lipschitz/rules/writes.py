"""Rules of operations that write or add values at constant places of a tensor.

Each value goes to one place. If it replaces the old value, each entry of the result comes from one of the two. Both
bounds then combine by the root of the sum of squares. If it is added to the old value, the bounds add up. The factor of
the addition is the root of the largest number of values at one place.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.rounding import times
from lightning_reg.functional.lipschitz.rules.arithmetic import spread
from lightning_reg.functional.lipschitz.rules.registry import for_functions
from lightning_reg.functional.lipschitz.value import Bound, NoBoundError, Operation, Traced, together, traced_in


def _before(input: Any) -> float:
    return input.bound.value if isinstance(input, Traced) else 0.0


def _fixed_places(places: Any) -> None:
    if next(traced_in(places), None) is not None:
        msg = "indexing by positions that depend on the input is discontinuous"
        raise NoBoundError(msg)


def _replaced(input: Any, source: Any, copies: float = 1.0) -> Bound:
    """Return the bound if each value of the source is written at most `copies` times."""
    written = times(source.bound.value, math.sqrt(copies)) if isinstance(source, Traced) else 0.0
    return Bound(together([_before(input), written]))


def _added(input: Any, source: Any, meeting: float, factor: float = 1.0, copies: float = 1.0) -> Bound:
    added = times(source.bound.value, abs(factor) * math.sqrt(meeting * copies)) if isinstance(source, Traced) else 0.0
    return Bound(_before(input) + added)


def _most(index: Tensor) -> int:
    """Return how often the most frequent place occurs in the index."""
    return int(torch.unique(index, return_counts=True)[1].amax()) if index.numel() else 0


def _meeting(index: Tensor, dim: int, size: int) -> int:
    """Return the largest number of values that `index`, in the shape of the values, puts at one place along `dim`."""
    counts = torch.zeros_like(index.movedim(dim, 0)[:1].expand(size, *index.movedim(dim, 0).shape[1:]))
    places = index.movedim(dim, 0) % max(size, 1)
    return int(counts.contiguous().scatter_add_(0, places, torch.ones_like(places)).amax()) if index.numel() else 0


@for_functions("scatter")
def _scatter(
    op: Operation, input: Any, dim: Any, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Bound:
    _fixed_places(index)
    source = value if src is None else src
    if reduce == "add":
        return _scatter_add(op, input, dim, index, source)
    if reduce is not None:
        msg = f"its rule does not cover `reduce={reduce!r}`"
        raise NoBoundError(msg)
    return _replaced(input, source, index.numel() if isinstance(source, Traced) and not source.value.ndim else 1)


@for_functions("scatter_add")
def _scatter_add(op: Operation, input: Any, dim: Any, index: Any, src: Any) -> Bound:
    _fixed_places(index)
    if not op.output.ndim:
        return _added(input, src, 1)
    return _added(input, src, _meeting(index, dim, op.output.shape[dim]))


@for_functions("scatter_reduce")
def _scatter_reduce(
    op: Operation, input: Any, dim: Any, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Bound:
    _fixed_places(index)
    if reduce == "sum":
        return _scatter_add(op, input, dim, index, src)
    # The mean, the maximum and the minimum of several values change no more than the values together.
    if reduce in {"amax", "amin", "mean"}:
        return _replaced(input, src)
    msg = f"its rule does not cover `reduce={reduce!r}`"
    raise NoBoundError(msg)


@for_functions("index_add")
def _index_add(op: Operation, input: Any, dim: Any, index: Any, source: Any, *, alpha: float = 1) -> Bound:
    _fixed_places(index)
    return _added(input, source, _most(index), alpha)


@for_functions("index_reduce")
def _index_reduce(
    op: Operation, input: Any, dim: Any, index: Any, source: Any, reduce: str, *, include_self: bool = True
) -> Bound:
    return _scatter_reduce(op, input, dim, index, source, reduce)


@for_functions("index_copy")
def _index_copy(op: Operation, input: Any, dim: Any, index: Any, source: Any) -> Bound:
    _fixed_places(index)
    return _replaced(input, source)


@for_functions("index_fill")
def _index_fill(op: Operation, input: Any, dim: Any, index: Any, value: Any) -> Bound:
    _fixed_places(index)
    return _replaced(input, value, op.output.numel())


@for_functions("index_put")
def _index_put(op: Operation, input: Any, indices: Any, values: Any, accumulate: bool = False) -> Bound:
    _fixed_places(indices)
    numbers = torch.arange(op.output.numel(), device=op.output.device).view(op.output.shape)[tuple(indices)]
    count = (values.value if isinstance(values, Traced) else values).numel()
    copies = numbers.numel() / max(count, 1)
    return _added(input, values, _most(numbers), 1.0, copies) if accumulate else _replaced(input, values, copies)


@for_functions("put")
def _put(op: Operation, input: Any, index: Any, source: Any, accumulate: bool = False) -> Bound:
    _fixed_places(index)
    return _added(input, source, _most(index % max(op.output.numel(), 1))) if accumulate else _replaced(input, source)


@for_functions("masked_scatter select_scatter slice_scatter diagonal_scatter")
def _one_each(op: Operation, input: Any, *rest: Any, **named: Any) -> Bound:
    sources = [each for each in (*rest, *named.values()) if isinstance(each, Traced)]
    if any(not each.value.is_floating_point() and not each.value.is_complex() for each in sources):
        _fixed_places(sources)
    written = [each.bound.value for each in sources]
    # A mask may broadcast and repeat the remaining values.
    return Bound(together([spread(op, input) if isinstance(input, Traced) else 0.0, *written]))


@for_functions("copy")
def _copy(op: Operation, input: Any, src: Any, non_blocking: bool = False) -> Bound:
    return Bound(spread(op, src) if isinstance(src, Traced) else 0.0)


@for_functions("fill")
def _fill(op: Operation, input: Any, value: Any) -> Bound:
    return Bound(spread(op, value) if isinstance(value, Traced) else 0.0)


@for_functions("zero")
def _zero(op: Operation, input: Any) -> Bound:
    return Bound(0.0)
