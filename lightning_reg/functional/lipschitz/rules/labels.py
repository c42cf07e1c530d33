"""Rules that bound the size of rows that labels choose from a constant table, for any labels."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.rounding import precise
from lightning_reg.functional.lipschitz.rules.registry import EXTENTS, for_functions, for_modules
from lightning_reg.functional.lipschitz.value import Bound, Extent, Operation, largest


def rows_of(table: Any) -> Extent | None:
    """Return the largest size of a row of a table, along its last dimension; None unless it is a constant of floats."""
    if not isinstance(table, Tensor) or not table.is_floating_point() or not table.ndim:
        return None
    return Extent(largest(table), largest(torch.linalg.vector_norm(precise(table), dim=-1)))


@for_modules(nn.Embedding, book=EXTENTS)
def _embedding_layer(op: Operation, bound: Bound, input: Any) -> Extent | None:
    return rows_of(op.module.weight)


@for_functions("embedding", book=EXTENTS)
def _embedding(op: Operation, bound: Bound, input: Any, weight: Any, *_: Any, **__: Any) -> Extent | None:
    return rows_of(weight)


@for_functions("one_hot", book=EXTENTS)
def _one_hot(op: Operation, bound: Bound, tensor: Any, *_: Any, **__: Any) -> Extent:
    return Extent(1.0, 1.0)
