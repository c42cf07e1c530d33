"""Rules that recognize a value as a formula of another: its squares, or means and lengths of its rows. See `forms`."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.forms import Form, Length, Mean, OfRows, Scaled, Squares, centered
from lightning_reg.functional.lipschitz.rounding import times
from lightning_reg.functional.lipschitz.rules.registry import FORMS, for_all, for_functions
from lightning_reg.functional.lipschitz.value import Bound, Extent, Operation, Traced, as_tensor, largest, traced_in

KindT = TypeVar("KindT", bound=Form)
_SQUARE = 2


def form_of(value: Any, kind: type[KindT]) -> KindT | None:
    """Return the form of a value if it has this kind, else None."""
    form = value.bound.form if isinstance(value, Traced) and value.value.is_floating_point() else None
    return form if isinstance(form, kind) else None


def _same(op: Operation, input: Any, *_: Any, **__: Any) -> Form | None:
    is_same = isinstance(input, Traced) and op.output.is_floating_point() and input.value.is_floating_point()
    return input.bound.form if is_same and op.output.shape == input.value.shape else None


def _same_unless_training(
    op: Operation, input: Any, p: float = 0.5, training: bool = True, *_: Any, **__: Any
) -> Form | None:
    return None if training else _same(op, input)


for_all(
    (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    "contiguous clone detach to type float double type_as cpu cuda requires_grad_ positive",
    _same,
    FORMS,
)
for_functions("dropout dropout1d dropout2d dropout3d", book=FORMS)(_same_unless_training)


def _squares(value: Traced) -> Squares | None:
    is_real = value.value.is_floating_point() and value.value.ndim > 0
    return Squares(value.bound.form, tuple(value.value.shape), value.bound.value) if is_real else None


@for_functions("pow", book=FORMS)
def _pow(op: Operation, input: Any, exponent: Any) -> Form | None:
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) or not isinstance(input, Traced):
        return None
    length = form_of(input, Length)
    if length is not None:
        return length.raised(exponent)
    return _squares(input) if exponent == _SQUARE else None


def _raised(exponent: float) -> Callable[..., Form | None]:
    return lambda op, input, *_, **__: _pow(op, input, exponent)


for _name, _exponent in {"square": 2, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1}.items():
    for_functions(_name, book=FORMS)(_raised(_exponent))


@for_functions("mul multiply", book=FORMS)
def _mul(op: Operation, input: Any, other: Any, **_: Any) -> Form | None:
    if isinstance(input, Traced) and isinstance(other, Traced):
        is_square = input.bound.form == other.bound.form and input.value.shape == other.value.shape
        return _squares(input) if is_square else None
    argument, constant = (input, other) if isinstance(input, Traced) else (other, input)
    return _times(op, argument, argument.bound.form, as_tensor(constant, argument.value))


def _times(op: Operation, argument: Traced, form: Form, factor: Tensor) -> Form | None:
    if factor.is_complex() or factor.layout != torch.strided or not argument.value.is_floating_point():
        return None
    if isinstance(form, Length):
        return _length_times(op, argument, form, factor)
    return _rows_times(op, argument, form, factor)


def _rows_times(op: Operation, argument: Traced, form: Form, factor: Tensor) -> Form | None:
    if op.output.shape != argument.value.shape:
        return None
    inner, gain = (form.of, form.gain) if isinstance(form, Scaled) else (form, 1.0)
    return Scaled(inner, times(gain, largest(factor)))


def _length_times(op: Operation, argument: Traced, length: Length, factor: Tensor) -> Form | None:
    shape = tuple(argument.value.shape)
    if factor.numel() == 1 and op.output.shape == shape:
        return length.scaled(float(factor))
    # Each number is multiplied only by constants of its own row.
    is_kept = shape in {length.kept, length.shape} and tuple(op.output.shape) in {length.kept, length.shape}
    return length.gained(largest(factor)) if is_kept else None


@for_functions("div divide true_divide truediv", book=FORMS)
def _div(op: Operation, input: Any, other: Any, *, rounding_mode: str | None = None, **_: Any) -> Form | None:
    if rounding_mode is not None or (isinstance(input, Traced) and isinstance(other, Traced)):
        return None
    if isinstance(input, Traced):
        return _times(op, input, input.bound.form, as_tensor(other, input.value).reciprocal())
    length = form_of(other, Length)
    inverse = length and length.raised(-1)
    return inverse and _times(op, other, inverse, as_tensor(input, other.value))


def _number(value: Any, like: Tensor) -> float | None:
    """Return a constant of one entry as a number; None for all other values."""
    if isinstance(value, Traced) or value is None or isinstance(value, bool):
        return None
    number = as_tensor(value, like)
    return float(number) if number.numel() == 1 and not number.is_complex() else None


@for_functions("add", book=FORMS)
def _add(op: Operation, input: Any, other: Any, *, alpha: float = 1, **_: Any) -> Form | None:
    if not isinstance(input, Traced):
        return _shifted(op, other, input, 1) if alpha == 1 else None
    return _shifted(op, input, other, alpha)


def _shifted(op: Operation, argument: Any, constant: Any, factor: float) -> Form | None:
    length = form_of(argument, Length)
    number = None if length is None else _number(constant, argument.value)
    if length is None or number is None or op.output.shape != argument.value.shape:
        return None
    return length.plus(number * factor)


@for_functions("sub subtract", book=FORMS)
def _sub(op: Operation, input: Any, other: Any, *, alpha: float = 1, **_: Any) -> Form | None:
    mean = form_of(other, Mean)
    if (
        mean is not None
        and isinstance(input, Traced)
        and alpha == 1
        and _meets(op, input, other, input.bound.form, mean)
    ):
        return centered(mean.of, mean.dims, mean.bound)
    if alpha == 1 and isinstance(input, Traced) and isinstance(other, Traced):
        return _variance(input, other)
    return _shifted(op, input, other, -alpha) if isinstance(input, Traced) else None


def _variance(squares: Traced, mean: Traced) -> Length | None:
    """Return the form of the mean square of rows minus the square of their mean, which is their variance."""
    length, square = form_of(squares, Length), form_of(mean, Squares)
    inner = square and square.of
    is_mean_square = length is not None and length.is_mean_square
    if length is None or not is_mean_square or not isinstance(inner, Mean):
        return None
    is_same = inner.of == length.of and inner.dims == length.dims and squares.value.shape == mean.value.shape
    return replace(length, of=centered(length.of, length.dims, length.bound)) if is_same else None


def _meets(op: Operation, rows: Traced, numbers: Traced, inner: Any, form: OfRows) -> bool:
    """Tell whether an elementwise operation combines each row with the number that `form` has for that row."""
    is_whole = numbers.value.numel() == 1 and form.size == math.prod(form.shape)
    return (
        inner == form.of
        and rows.value.shape == op.output.shape == form.shape
        and (is_whole or tuple(numbers.value.shape) in {form.kept, form.shape})
    )


@for_functions("clamp clip", book=FORMS)
def _clamp(op: Operation, input: Any, min: Any = None, max: Any = None, **_: Any) -> Form | None:
    length = form_of(input, Length)
    if length is None or op.output.shape != input.value.shape:
        return None
    limits = [None if each is None else _number(each, input.value) for each in (min, max)]
    is_known = [limit is None for limit in limits] == [each is None for each in (min, max)]
    return length.limited(*limits) if is_known else None


@for_functions("clamp_min", book=FORMS)
def _clamp_min(op: Operation, input: Any, min: Any, **_: Any) -> Form | None:
    return _clamp(op, input, min)


@for_functions("clamp_max", book=FORMS)
def _clamp_max(op: Operation, input: Any, max: Any, **_: Any) -> Form | None:
    return _clamp(op, input, None, max)


@for_functions("maximum max", book=FORMS)
def _maximum(op: Operation, input: Any, other: Any = None, **_: Any) -> Form | None:
    argument, constant = (input, other) if isinstance(input, Traced) else (other, input)
    return _clamp(op, argument, constant) if isinstance(constant, Tensor) and isinstance(op.output, Tensor) else None


@for_functions("minimum min", book=FORMS)
def _minimum(op: Operation, input: Any, other: Any = None, **_: Any) -> Form | None:
    argument, constant = (input, other) if isinstance(input, Traced) else (other, input)
    is_limit = isinstance(constant, Tensor) and isinstance(op.output, Tensor)
    return _clamp(op, argument, None, constant) if is_limit else None


@for_functions("view reshape flatten unflatten unsqueeze squeeze getitem", book=FORMS)
def _reshaped(op: Operation, input: Any, *rest: Any, **named: Any) -> Form | None:
    form = form_of(input, OfRows)
    count = math.prod(form.shape) // form.size if form is not None else 0
    if form is None or input.value.numel() != count or op.output.numel() != count:
        return None
    # A view may change the dtype, and a position may depend on the input.
    if op.output.dtype != input.value.dtype or next(traced_in((rest, named)), None) is not None:
        return None
    places = torch.arange(count, device=input.value.device)
    moved = op.apply(places.view(input.value.shape), *rest, **named)
    return form if torch.equal(moved.flatten(), places) else None


@for_functions("expand expand_as broadcast_to repeat tile", book=FORMS)
def _spread(op: Operation, input: Any, *_: Any, **__: Any) -> Form | None:
    form = form_of(input, OfRows)
    is_spread = form is not None and tuple(input.value.shape) == form.kept and tuple(op.output.shape) == form.shape
    return form if is_spread else None


def _as_rows(value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the rows along some dimensions, shape (..., entries)."""
    return value.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))


def rescaled(op: Operation, input: Any, other: Any, *, is_quotient: bool = False) -> tuple[Bound, Extent] | None:
    """Return the bound and the size of rows times, or over, a function of their lengths; None for other operations."""
    for rows, numbers in ((input, other),) if is_quotient else ((input, other), (other, input)):
        form = form_of(numbers, Length)
        if form is None or not isinstance(rows, Traced):
            continue
        scaled = form_of(rows, Scaled)
        gain = scaled.gain if scaled is not None and scaled.of == form.of else 1.0
        inner = scaled.of if scaled is not None and scaled.of == form.of else rows.bound.form
        length = form.raised(-1) if is_quotient else form
        if length is not None and _meets(op, rows, numbers, inner, form):
            # Rows that have been scaled do not show their own lengths.
            shortest = rows.shortest(partial(_as_rows, dims=length.dims)) if rows.bound.form == form.of else 0.0
            constant, radius = (times(each, gain) for each in length.normalized(shortest))
            # The radius bounds a vector along each of these dimensions.
            return Bound(times(form.bound, constant)), Extent(radius, radius, length.dims[-1] - rows.value.ndim)
    return None
