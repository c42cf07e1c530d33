"""Rules of sums with a product in one call, and of weighted means of two tensors."""

from collections.abc import Callable
from typing import Any

from lightning_reg.functional.lipschitz.rounding import times
from lightning_reg.functional.lipschitz.rules.arithmetic import product, spread
from lightning_reg.functional.lipschitz.rules.contractions import by_equation
from lightning_reg.functional.lipschitz.rules.registry import for_functions
from lightning_reg.functional.lipschitz.value import (
    Bound,
    NoBoundError,
    Operation,
    Traced,
    as_tensor,
    largest,
    traced_in,
)

_EQUATIONS = {
    "addmm": "ij,jk->ik",
    "addmv": "ij,j->i",
    "addr": "i,j->ij",
    "baddbmm": "bij,bjk->bik",
    "addbmm": "bij,bjk->ik",
}


def _added(
    op: Operation, input: Any, beta: Any, alpha: Any, make: Callable[[], Bound], factors: tuple[Any, ...]
) -> Bound:
    """Return the bound of beta * input + alpha * product of factors."""
    made = make() if next(traced_in(factors), None) else None
    if made is None:
        return Bound(times(spread(op, input), abs(beta)))
    if not isinstance(input, Traced):  # a constant input only shifts the product
        return made if alpha == 1 else Bound(times(made.value, abs(alpha)))
    return Bound(times(made.value, abs(alpha)) + times(spread(op, input), abs(beta)))


def _register(name: str, equation: str) -> None:
    @for_functions(name)
    def rule(op: Operation, input: Any, *factors: Any, beta: Any = 1, alpha: Any = 1, **named: Any) -> Bound:
        # The names of the factors are in alphabetical order: `mat1` and `mat2`, `mat` and `vec`.
        factors = (*factors, *(named[each] for each in sorted(named)))
        return _added(op, input, beta, alpha, lambda: by_equation(equation, *factors), factors)


for _name, _equation in _EQUATIONS.items():
    _register(_name, _equation)


@for_functions("addcmul")
def _addcmul(op: Operation, input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Bound:
    return _added(op, input, 1, value, lambda: product(op, tensor1, tensor2), (tensor1, tensor2))


@for_functions("addcdiv")
def _addcdiv(op: Operation, input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Bound:
    if isinstance(tensor2, Traced):
        msg = "division by a value that depends on the input has no bound near 0"
        raise NoBoundError(msg)

    def quotient() -> Bound:
        return product(op, tensor1, as_tensor(tensor2, tensor1.value).reciprocal())

    return _added(op, input, 1, value, quotient, (tensor1, tensor2))


@for_functions("lerp")
def _lerp(op: Operation, input: Any, end: Any, weight: Any) -> Bound:
    """Return the bound of (1 - w) a + w b."""
    argument = input if isinstance(input, Traced) else end
    if not isinstance(argument, Traced):
        msg = "its rule does not cover a `weight` that depends on the input"
        raise NoBoundError(msg)
    share = as_tensor(weight, argument.value)
    terms = [(each, factor) for each, factor in ((input, 1 - share), (end, share)) if isinstance(each, Traced)]
    return Bound(sum(times(spread(op, each), largest(factor)) for each, factor in terms))
