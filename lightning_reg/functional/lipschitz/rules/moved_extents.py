"""Rules that bound the lengths of vectors after a move. Moving numbered entries shows where they go."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.nested import found
from lightning_reg.functional.lipschitz.rules.labels import rows_of
from lightning_reg.functional.lipschitz.rules.registry import EXTENTS, for_all, plain
from lightning_reg.functional.lipschitz.value import Bound, Extent, Operation, Traced, traced_in

_MOVES = (
    "reshape view flatten unflatten ravel squeeze unsqueeze view_as reshape_as permute transpose movedim moveaxis"
    " swapaxes swapdims t T mT roll flip fliplr flipud rot90 chunk split tensor_split hsplit vsplit dsplit unbind"
    " narrow select unsafe_chunk unsafe_split split_with_sizes getitem expand expand_as repeat tile repeat_interleave"
    " broadcast_to index_select gather take take_along_dim"
)


def _moved(op: Operation, bound: Bound, input: Any, *rest: Any, **named: Any) -> Extent | None:
    if not isinstance(input, Traced):
        return _chosen(op, input, *rest, **named)
    extent, count = input.bound.extent, input.value.numel()
    by_labels = next(traced_in((rest, named)), None) is not None
    if not count or by_labels or (math.inf == extent.radius and extent.scores is None):
        return Extent(extent.entries)
    places = torch.arange(count, device=input.value.device)
    rest, named = plain((rest, named))
    scores = None
    if extent.scores is not None and isinstance(op.output, Tensor):
        moved = op.apply(places.view(input.value.shape), *rest, **named)
        is_same = moved.shape[-2:] == input.value.shape[-2:] and torch.equal(moved.flatten(), places)
        scores = extent.scores if is_same else None
    if math.isinf(extent.radius):
        return Extent(extent.entries, scores=scores)
    # The numbers of a vector's entries are consecutive, and identify the vector.
    size = input.value.shape[extent.dim]
    numbers = places.view(*input.value.movedim(extent.dim, -1).shape).movedim(-1, extent.dim).contiguous()
    outputs = list(found(op.apply(numbers, *rest, **named), Tensor))
    dim = min(range(-max(outputs[0].ndim, 1), 0), key=lambda dim: (_share(outputs[0], dim, size), -dim))
    # The largest number of vectors that have entries in one moved vector.
    vectors = max(_share(each, dim, size) * (each.shape[dim] if each.ndim else 1) for each in outputs)
    return Extent(extent.entries, extent.radius * math.sqrt(vectors), dim, scores)


def _chosen(op: Operation, table: Any, *places: Any, **named: Any) -> Extent | None:
    """Return the size of entries that other values choose from a constant, of whole rows if they choose rows."""
    rows = rows_of(table)
    if rows is None or table.ndim == 1 or len(places) != 1 or not isinstance(places[0], Traced):
        return rows and Extent(rows.entries)
    return rows if op.output.shape == (*places[0].value.shape, *table.shape[1:]) else Extent(rows.entries)


def _share(numbers: Tensor, dim: int, size: int) -> float:
    """Return how many vectors of `size` have entries in one vector along `dim`, divided by its own size."""
    if not numbers.numel():
        return 0.0
    if not numbers.ndim:
        return 1.0
    ordered = numbers.movedim(dim, -1).sort(-1).values
    if (ordered.diff() == 0).any():  # copies of an entry
        return math.inf
    return float(1 + ((ordered // size).diff() != 0).sum(-1).amax()) / ordered.shape[-1]


for_all((nn.Flatten, nn.Unflatten), _MOVES, _moved, EXTENTS)
