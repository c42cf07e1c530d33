"""Rules that bound the size of rows that labels choose from a constant table, for any labels."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.rounding import precise, times
from lightning_reg.functional.lipschitz.rules.registry import EXTENTS, for_functions, for_modules
from lightning_reg.functional.lipschitz.value import Bound, Extent, Operation, Traced, largest


def rows_of(table: Any) -> Extent | None:
    """Return the largest size of a row of a table, along its last dimension; None unless it is a constant of floats."""
    if not isinstance(table, Tensor) or not table.is_floating_point() or not table.ndim:
        return None
    return Extent(largest(table), largest(torch.linalg.vector_norm(precise(table), dim=-1)))


@for_functions("embedding", book=EXTENTS)
@for_modules(nn.Embedding, book=EXTENTS, settings="weight")
def _embedding(op: Operation, bound: Bound, input: Any, weight: Any, *_: Any, **__: Any) -> Extent | None:
    return rows_of(weight)


@for_modules(nn.EmbeddingBag, book=EXTENTS)
def _bag_layer(
    op: Operation, bound: Bound, input: Traced, offsets: Any = None, per_sample_weights: Any = None
) -> Extent | None:
    return _of_bags(input, op.module.weight, op.module.mode, per_sample_weights, has_offsets=offsets is not None)


@for_functions("embedding_bag", book=EXTENTS)
def _bag(  # the arguments of torch's function
    op: Operation,
    bound: Bound,
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: Any = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    **_: Any,
) -> Extent | None:
    return _of_bags(input, weight, mode, per_sample_weights, has_offsets=offsets is not None)


def _of_bags(input: Any, table: Any, mode: str, weights: Any, *, has_offsets: bool) -> Extent | None:
    """Return the largest size of a sum, a mean or a maximum of rows. Each bag holds any rows of the table."""
    rows = rows_of(table)
    if rows is None or isinstance(weights, Traced):
        return None
    if mode == "mean":
        return rows
    if mode == "max":
        return Extent(rows.entries, largest(torch.linalg.vector_norm(precise(table).abs().amax(0))))
    places = input.value if isinstance(input, Traced) else input
    # With offsets, one bag may hold all places.
    count = places.numel() if has_offsets else places.shape[-1]
    share = count * (1.0 if weights is None else largest(weights))
    return Extent(times(rows.entries, share), times(rows.radius, share))


@for_functions("one_hot", book=EXTENTS)
def _one_hot(op: Operation, bound: Bound, tensor: Any, *_: Any, **__: Any) -> Extent:
    return Extent(1.0, 1.0)
