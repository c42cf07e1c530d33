"""Apply the answer of a rule to the bounds of an operation's arguments."""

import math
from typing import Any

from torch import Tensor

from lightning_reg.functional.lipschitz.rounding import times
from lightning_reg.functional.lipschitz.rules.registry import Rule, UserRule, plain
from lightning_reg.functional.lipschitz.value import Bound, NoBoundError, Operation, Slopes, together, traced_in


class RuleError(Exception):
    """An error in a user's rule, which is its cause."""


def apply_rule(
    rule: Rule | UserRule, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Bound, float | None]:
    """Return the bound of the result of an operation, and the constant of the operation alone, if the rule says it.

    Raises:
        NoBoundError: If there is no bound, or none that is known.
        RuleError: If a user's rule raises, or returns no constant.

    """
    traced = list(traced_in([args, kwargs]))
    if isinstance(rule, UserRule):
        own = _ask(rule, operation, args, kwargs)
        if math.isinf(own):
            msg = "its registered rule says that it has none"
            raise NoBoundError(msg)
        return Bound(times(together(each.bound.value for each in traced), own), own=own), own
    result = rule(operation, *args, **kwargs)
    if isinstance(result, Bound):
        return result, result.own
    if len(traced) != 1:
        msg = "no rule for it, if more than one of its arguments depends on the input"
        raise NoBoundError(msg)
    if not isinstance(result, Slopes):
        return traced[0].bound.after(result), result
    return _entry_by_entry(operation, traced[0].value, traced[0].bound, result)


def _entry_by_entry(operation: Operation, value: Tensor, bound: Bound, slopes: Slopes) -> tuple[Bound, float]:
    if value.is_complex():
        msg = "no rule for it with complex numbers"
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
