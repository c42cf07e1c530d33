"""Apply the answer of a rule to the bounds of an operation's arguments."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.nested import replaced
from lightning_reg.functional.lipschitz.rounding import UPWARDS, times
from lightning_reg.functional.lipschitz.rules.registry import Rule, UserRule, plain
from lightning_reg.functional.lipschitz.value import (
    Bound,
    Extent,
    NoBoundError,
    Operation,
    Scores,
    Slopes,
    Traced,
    largest,
    together,
    traced_in,
)

# Stands for infinity. A bounded function has reached its limit here; a result above `_UNBOUNDED` has no limit.
_FAR = 1e30
_UNBOUNDED = 1e20


class RuleError(Exception):
    """An error in a user's rule. Its `__cause__` is the original error."""


def apply_rule(
    rule: Rule | UserRule, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Bound, float | None]:
    """Return the bound of an operation's result, and the constant of the operation alone (None if not given).

    Raises:
        NoBoundError: If the operation has no bound, or no known one.
        RuleError: If a user's rule raises, or returns something other than a constant.

    """
    traced = list(traced_in([args, kwargs]))
    if isinstance(rule, UserRule):
        own = _ask(rule, operation, args, kwargs)
        if math.isinf(own):
            msg = "the rule registered for it returned infinity"
            raise NoBoundError(msg)
        return Bound(times(together(each.bound.value for each in traced), own), own=own), own
    result = rule(operation, *args, **kwargs)
    if isinstance(result, Bound):
        return replace(result, extent=Extent()), result.own
    if len(traced) != 1:
        msg = f"its rule allows only one argument to depend on the input, got {len(traced)}"
        raise NoBoundError(msg)
    if not isinstance(result, Slopes):
        return traced[0].bound.after(result), result

    def at(points: Tensor) -> Tensor:
        changed: Any = replaced((args, kwargs), Traced, lambda _: points)
        return operation.apply(*changed[0], **changed[1])  # type: ignore[no-any-return]  # a tensor

    bound, own = _entry_by_entry(operation, traced[0].value, traced[0].bound, result)
    bound = _nearby(at, operation, traced[0], result) or bound
    return replace(bound, extent=_extent(at, traced[0], result, own)), own


def _extent(at: Callable[[Tensor], Tensor], argument: Traced, slopes: Slopes, slope: float) -> Extent:
    """Return the size of a function's result, by its value at 0 and its slope, and by its limits if it is monotone."""
    before = argument.bound.extent
    zeros = torch.zeros_like(argument.value)
    ends = largest(torch.stack([at(zeros - _FAR), at(zeros + _FAR)])) if slopes.low >= 0 else math.inf
    ends = ends if ends < _UNBOUNDED else math.inf  # NaN counts as unbounded
    if math.inf == before.entries == ends:
        return Extent()
    start = largest(at(zeros))
    scores = before.scores
    if scores is not None:
        scores = None if scores.are_shares else Scores(scores.by_row * slope, scores.by_column * slope)
    length = argument.value.shape[before.dim] if argument.value.ndim else 1
    radius = times(before.radius, slope) + start * math.sqrt(length)
    return Extent(min(times(before.entries, slope) + start, ends), radius, before.dim, scores)


def _nearby(at: Callable[[Tensor], Tensor], operation: Operation, argument: Traced, slopes: Slopes) -> Bound | None:
    """Return the bound by the slopes of a function on the interval of its argument; None if they are unknown."""
    interval = argument.interval()
    if operation.turns is None or interval is None or not argument.value.ndim:
        return None
    low, high = interval
    places = torch.stack([low, high, *(torch.full_like(low, turn).clamp(low, high) for turn in operation.turns)])
    with torch.enable_grad():
        places.requires_grad_()
        found = torch.stack([at(each.clone()) for each in places])
        (steepness,) = torch.autograd.grad(found.sum(), places)
    if not bool(steepness.isfinite().all()):
        return None
    least, most = steepness.amin(0), steepness.amax(0)
    # Where the slope varies, leave room for its rounding.
    varies = most > least
    return argument.bound.between(
        torch.where(varies, (least - UPWARDS + 1).clamp_min(slopes.low), least),
        torch.where(varies, (most + UPWARDS - 1).clamp_max(slopes.high), most),
    )


def _entry_by_entry(operation: Operation, value: Tensor, bound: Bound, slopes: Slopes) -> tuple[Bound, float]:
    if value.is_complex():
        msg = "its rule does not cover complex numbers"
        raise NoBoundError(msg)
    factor = math.nan if math.isnan(slopes.high) else max(abs(slopes.low), abs(slopes.high))
    before, after = value.numel(), operation.output.numel()
    if before != after:  # it broadcasts
        return bound.after(factor * math.sqrt(after / before)), factor
    return bound.after(factor, slopes), factor


def _ask(rule: UserRule, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    module = () if operation.module is None else (operation.module,)
    try:
        answer = rule.function(*module, *plain(args), **plain(kwargs))
    except Exception as error:  # a user's rule can raise anything
        raise RuleError from error
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        kind = type(answer).__name__
        msg = f"A rule must return a Lipschitz constant, a number >= 0, got {answer!r} of type {kind}."
        raise RuleError from TypeError(msg)
    if answer < 0:
        msg = f"A rule must return a Lipschitz constant, a number >= 0, got {answer}."
        raise RuleError from ValueError(msg)
    return float(answer)
