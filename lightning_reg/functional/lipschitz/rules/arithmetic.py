"""Rules of elementwise sums, products and quotients, and of operations that join or choose values."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.rounding import power, times
from lightning_reg.functional.lipschitz.rules.forms import rescaled
from lightning_reg.functional.lipschitz.rules.registry import for_functions, for_modules, without_bound
from lightning_reg.functional.lipschitz.value import (
    PRODUCT,
    Bound,
    NoBoundError,
    Operation,
    Traced,
    as_one,
    as_tensor,
    constant,
    largest,
    together,
    traced_in,
)

_POWER = "the derivative of this power has no known bound"


def spread(op: Operation, argument: Traced) -> float:
    """Return the bound of an argument after the operation has broadcast it."""
    before, after = argument.value.numel(), op.output.numel()
    return argument.bound.value if before == after else times(argument.bound.value, math.sqrt(after / max(before, 1)))


def common_shape(*tensors: Any) -> torch.Size:
    """Return the shape to which tensors broadcast, whether they depend on the input or not."""
    shapes = [(each.value if isinstance(each, Traced) else each).shape for each in tensors]
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape


@for_functions("add sub subtract")
def _add(op: Operation, input: Any, other: Any, *, alpha: float = 1) -> Bound:
    terms = [(argument, factor) for argument, factor in ((input, 1), (other, alpha)) if isinstance(argument, Traced)]
    # A value that depends only on labels is a constant here.
    terms = [each for each in terms if each[0].bound.value != 0] or terms
    if len(terms) == 1 and abs(terms[0][1]) == 1 and terms[0][0].value.shape == op.output.shape:
        return terms[0][0].bound.shifted()
    return Bound(sum(times(spread(op, argument), abs(factor)) for argument, factor in terms))


@for_functions("rsub")
def _rsub(op: Operation, input: Any, other: Any, *, alpha: float = 1) -> Bound:
    return _add(op, other, input, alpha=alpha)


@for_functions("mul multiply")
def product(op: Operation, input: Any, other: Any) -> Bound:
    """Return the bound of an elementwise product. A third argument of the operation may broadcast it further."""
    if isinstance(input, Traced) and isinstance(other, Traced):
        known = rescaled(op, input, other)
        if known is not None and not math.isinf(known[0].value):
            return known[0]
        # The change of each factor is multiplied by the largest entry of the other.
        sizes = other.bound.extent.entries, input.bound.extent.entries
        if any(math.isinf(size) and each.bound.value for size, each in zip(sizes, (input, other), strict=True)):
            raise NoBoundError(PRODUCT)
        return Bound(times(spread(op, input), sizes[0]) + times(spread(op, other), sizes[1]))
    argument, factor = (input, other) if isinstance(input, Traced) else (other, input)
    factor = as_tensor(factor, argument.value)
    if factor.numel() == 1 and argument.value.shape == op.output.shape:
        size = abs(factor.item())
        size = size if math.isfinite(size) else math.nan
        chain = argument.bound.chain and argument.bound.chain.scaled(size)
        return replace(argument.bound.after(size), chain=chain)
    # Each entry of the argument meets several entries of the factor.
    squares = factor.abs().expand(op.output.shape).square().sum_to_size(argument.value.shape)
    return argument.bound.after(largest(squares.sqrt()))


@for_functions("div divide true_divide truediv")
def _div(op: Operation, input: Any, other: Any, *, rounding_mode: str | None = None) -> Bound:
    if rounding_mode is not None:
        msg = "`rounding_mode` makes the quotient discontinuous, so it has no finite Lipschitz constant"
        raise NoBoundError(msg)
    if isinstance(other, Traced):
        known = rescaled(op, input, other, is_quotient=True)
        if known is not None and not math.isinf(known[0].value):
            return known[0]
        msg = "division by a value that depends on the input has no bound near 0"
        raise NoBoundError(msg)
    return product(op, input, as_tensor(other, input.value).reciprocal())


@for_functions("pow")
def _pow(op: Operation, input: Any, exponent: Any) -> Bound:
    if isinstance(input, Traced) and not isinstance(exponent, Traced | Tensor) and exponent in {0, 1}:
        return input.bound if exponent else Bound(0.0)
    if isinstance(input, Traced) and isinstance(exponent, int | float) and exponent >= 1:
        slope = exponent * power(input.bound.extent.entries, exponent - 1)
        if math.isfinite(slope):
            return input.bound.after(slope)
    raise NoBoundError(_POWER)


@for_functions("square")
def _square(op: Operation, input: Traced) -> Bound:
    return _pow(op, input, 2)


@for_functions("cat concat concatenate stack hstack vstack dstack row_stack column_stack")
def _cat(op: Operation, tensors: Any, *_: Any, **__: Any) -> Bound:
    return Bound(as_one(argument.bound for argument in traced_in(tensors)))


@for_functions("complex")
def _complex(op: Operation, real: Any, imag: Any) -> Bound:
    return Bound(together(spread(op, argument) for argument in traced_in([real, imag])))


@for_functions("setitem")
def _setitem(op: Operation, input: Any, index: Any, value: Any) -> Bound:
    constant(index)
    before = input.bound.value if isinstance(input, Traced) else 0.0
    place = op.output[index].numel()
    written = [each for each in (value,) if isinstance(each, Traced)]
    copies = (math.sqrt(place / max(each.value.numel(), 1)) for each in written)
    return Bound(together([before, *(times(e.bound.value, c) for e, c in zip(written, copies, strict=True))]))


@for_functions("broadcast_tensors")
def _broadcast(op: Operation, *tensors: Any) -> Bound:
    size = op.output[0].numel()
    traced = traced_in(tensors)
    return Bound(together(times(each.bound.value, math.sqrt(size / max(each.value.numel(), 1))) for each in traced))


@for_functions("where")
def _where(op: Operation, condition: Any, input: Any, other: Any) -> Bound:
    if isinstance(condition, Traced) and isinstance(input, Tensor):  # the method: x.where(condition, other)
        condition, input = input, condition
    _fixed(condition)
    return Bound(together(spread(op, argument) for argument in traced_in([input, other])))


@for_functions("masked_fill masked_select")
def _masked(op: Operation, input: Traced, mask: Any, value: Any = None) -> Bound:
    _fixed(mask)
    constant(value)
    copies = max(op.output.numel() / max(input.value.numel(), 1), 1.0)
    return input.bound.after(math.sqrt(copies))


def _fixed(condition: Any) -> None:
    # The condition may depend on labels.
    if any(each.bound.value != 0 for each in traced_in(condition)):
        msg = "its condition depends on the input, so its result is discontinuous"
        raise NoBoundError(msg)


_CONSTANTS = "zeros_like ones_like empty_like full_like new_zeros new_ones new_full new_empty new_tensor size"


@for_functions(_CONSTANTS)
def _no_values(op: Operation, input: Any, *rest: Any, **named: Any) -> Bound:
    constant([rest, named])
    return Bound(0.0)


for_functions("prod cumprod renorm cosine_similarity")(
    without_bound("it multiplies values that depend on the input, and no rule covers these products")
)
for_functions("var var_mean")(without_bound("it squares its input, and the derivative of a square is unbounded"))
for_functions("argmax argmin eq ne lt gt le ge isnan isfinite isinf bool long int nonzero argsort logical_not any all")(
    without_bound("whole numbers and comparisons are discontinuous: they have no Lipschitz constant")
)
for_modules(nn.CosineSimilarity)(
    without_bound("it multiplies values that depend on the input, and no rule covers these products")
)
