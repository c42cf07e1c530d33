"""Rules of operations that take entries at given places: constant ones, or places that arbitrary labels choose.

If labels choose, the bound holds for any places. In the worst case, all results that can have the same entry have it.
So the factor is the root of their number.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.rules.layers import INTEGERS
from lightning_reg.functional.lipschitz.rules.moves import copied
from lightning_reg.functional.lipschitz.rules.registry import Rule, for_functions
from lightning_reg.functional.lipschitz.value import Bound, NoBoundError, Operation, Traced, constant, traced_in


def _labels(input: Any, places: Any) -> list[Traced]:
    """Return the labels that choose the places; an empty list if all places are constant.

    Raises:
        NoBoundError: If a place depends on the network's input.

    """
    labels = list(traced_in(places))
    if not isinstance(input, Traced) or any(each.bound.value != 0 for each in labels):
        msg = "indexing by positions that depend on the input is discontinuous"
        raise NoBoundError(msg)
    return labels


def _by(factor: Callable[..., float]) -> Rule:
    """Return the rule of a function, given its factor if labels choose the places."""

    def rule(op: Operation, input: Any, *places: Any, **named: Any) -> Bound:
        labels = _labels(input, (places, named))
        found = factor(op, input, *places, **named) if labels else copied(op, input, *places, **named)
        before: Bound = input.bound
        return before.after(found)

    return rule


def _selected(op: Operation, input: Traced, *places: Any, **named: Any) -> float:
    return math.sqrt(next(traced_in((places, named))).value.numel())


def _gathered(op: Operation, input: Traced, dim: int, index: Any, **_: Any) -> float:
    # Results that differ in another dimension have different entries.
    return math.sqrt(op.output.shape[dim]) if op.output.ndim else 1.0


def _taken(op: Operation, input: Traced, indices: Any, dim: int | None = None) -> float:
    # Other dimensions of the input may broadcast.
    entries = input.value.numel() if dim is None else input.value.shape[dim]
    return math.sqrt(op.output.numel() * entries / max(input.value.numel(), 1))


for_functions("index_select take")(_by(_selected))
for_functions("gather")(_by(_gathered))
for_functions("take_along_dim")(_by(_taken))


@for_functions("embedding")
def _rows(
    op: Operation, input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> Bound:
    """Return the bound of rows of a table that depends on the input."""
    if not isinstance(weight, Traced) or max_norm is not None:
        raise NoBoundError(INTEGERS)
    labels = _labels(weight, input)
    most = input.value.numel() if labels else int(torch.bincount(input.flatten(), minlength=1).amax())
    before: Bound = weight.bound
    return before.after(math.sqrt(most))


@for_functions("getitem")
def _getitem(op: Operation, input: Any, index: Any) -> Bound:
    parts = index if isinstance(index, tuple) else (index,)
    if isinstance(input, Traced) and all(
        part is None or part is ... or isinstance(part, int | slice) for part in parts
    ):
        constant(index)
        return Bound(input.bound.value, source=input)
    labels = _labels(input, index)
    before: Bound = input.bound
    return before.after(math.sqrt(_most_alike(parts)) if labels else copied(op, input, index))


def _most_alike(parts: Any) -> int:
    """Return the largest number of places that can be the same, because only labels tell them apart."""
    places = [part.value if isinstance(part, Traced) else part for part in parts]
    places = [torch.as_tensor(each) for each in places if isinstance(each, Tensor | list)]
    shape: torch.Size = torch.broadcast_shapes(*(each.shape for each in places))  # type: ignore[no-untyped-call]
    fixed = [torch.as_tensor(part) for part in parts if isinstance(part, Tensor | list)]
    if any(each.dtype in {torch.bool, torch.uint8} for each in places):
        msg = "its rule does not cover a mask beside labels"
        raise NoBoundError(msg)
    # A negative place may be the same as another one.
    told = [each.expand(shape).flatten().cpu() for each in fixed if bool((each >= 0).all())]
    if not told or not shape.numel():
        return shape.numel()
    return int(torch.unique(torch.stack(told), dim=1, return_counts=True)[1].amax())
