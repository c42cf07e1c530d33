"""Rules that recognize sums, means, deviations and norms as functions of the rows of a value. See `forms`."""

import math
from collections.abc import Callable
from typing import Any

import torch

from lightning_reg.functional.lipschitz.forms import Form, Length, Mean, Squares, centered
from lightning_reg.functional.lipschitz.rules.forms import form_of
from lightning_reg.functional.lipschitz.rules.registry import FORMS, for_function, for_functions
from lightning_reg.functional.lipschitz.value import Operation, Traced

_SQUARE = 2


def _rows(shape: tuple[int, ...], dim: Any) -> tuple[int, ...] | None:
    """Return the reduced dimensions, counted from the first; None if they are unknown or the value is empty."""
    count = len(shape)
    dims = range(count) if dim is None or dim in ((), []) else (dim,) if isinstance(dim, int) else tuple(dim)
    if not all(isinstance(each, int) for each in dims) or not count or not math.prod(shape):
        return None
    return tuple(sorted({each % count for each in dims}))


def _length(value: Traced, form: Form, bound: float, dim: Any, power: float, removed: float | None) -> Length | None:
    """Return a power of a form's row lengths. With `removed`, they are divided by the root of (entries - `removed`)."""
    shape = tuple(value.value.shape)
    dims = _rows(shape, dim)
    if dims is None or not value.value.is_floating_point():
        return None
    count = math.prod(shape[dim] for dim in dims)
    if removed is not None and count <= removed:
        return None
    return Length(
        form, shape, dims, bound, slope=1.0 if removed is None else 1 / math.sqrt(count - removed), power=power
    )


@for_functions("sum", book=FORMS)
def _sum(op: Operation, input: Any, dim: Any = None, *_: Any, axis: Any = None, **__: Any) -> Form | None:
    return _sum_of_squares(op, input, dim if axis is None else axis, None)


@for_functions("mean", book=FORMS)
def _mean(op: Operation, input: Any, dim: Any = None, *_: Any, axis: Any = None, **__: Any) -> Form | None:
    dim = dim if axis is None else axis
    if form_of(input, Squares) is not None:
        return _sum_of_squares(op, input, dim, 0)
    return _mean_of(input, dim)


def _sum_of_squares(op: Operation, input: Any, dim: Any, removed: float | None) -> Form | None:
    squares = form_of(input, Squares)
    return squares and _length(input, squares.of, squares.bound, dim, _SQUARE, removed)


def _mean_of(input: Any, dim: Any) -> Mean | None:
    if not isinstance(input, Traced) or not input.value.is_floating_point():
        return None
    shape = tuple(input.value.shape)
    dims = _rows(shape, dim)
    return None if dims is None else Mean(input.bound.form, shape, dims, input.bound.value)


def _deviation(power: float) -> Callable[..., Any]:
    def rule(
        op: Operation,
        input: Any,
        dim: Any = None,
        *rest: Any,
        unbiased: bool = True,
        correction: Any = None,
        **_: Any,
    ) -> Any:
        if not isinstance(input, Traced):
            return None
        # The old signatures: `var(unbiased)` and `var(dim, unbiased, keepdim)`.
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        elif rest:
            unbiased = rest[0]
        dims = _rows(tuple(input.value.shape), dim)
        if dims is None:
            return None
        removed = float(correction) if correction is not None else float(unbiased)
        length = _length(
            input, centered(input.bound.form, dims, input.bound.value), input.bound.value, dim, power, removed
        )
        return (length, _mean_of(input, dim)) if isinstance(op.output, tuple) else length

    return rule


for_functions("std std_mean", book=FORMS)(_deviation(1))
for_functions("var var_mean", book=FORMS)(_deviation(2))


@for_functions("norm", book=FORMS)
def _norm(op: Operation, input: Any, p: Any = "fro", dim: Any = None, *_: Any, **__: Any) -> Form | None:
    return _vector_norm(op, input, 2 if p in {"fro", None} else p, dim)


def _vector_norm(op: Operation, input: Any, ord: Any = 2, dim: Any = None, *_: Any, **__: Any) -> Form | None:
    if not isinstance(input, Traced) or isinstance(ord, bool) or ord != _SQUARE:
        return None
    return _length(input, input.bound.form, input.bound.value, dim, 1, None)


def _linalg_norm(op: Operation, input: Any, ord: Any = None, dim: Any = None, *_: Any, **__: Any) -> Form | None:
    # For a matrix, `ord=2` is the spectral norm.
    is_length = ord in {None, "fro"} or isinstance(dim, int)
    return _vector_norm(op, input, 2 if ord in {None, "fro"} else ord, dim) if is_length else None


for_function(torch.linalg.vector_norm, _vector_norm, FORMS)
for_function(torch.linalg.norm, _linalg_norm, FORMS)
