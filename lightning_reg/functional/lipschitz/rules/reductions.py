"""Rules of functions that reduce several numbers to one: sums, extremes, norms, deviations and distances."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.parts import Part
from lightning_reg.functional.lipschitz.rounding import UPWARDS, times
from lightning_reg.functional.lipschitz.rules.arithmetic import common_shape, spread
from lightning_reg.functional.lipschitz.rules.registry import Rule, for_function, for_functions, for_modules
from lightning_reg.functional.lipschitz.value import (
    Bound,
    NoBoundError,
    Operation,
    Traced,
    as_one,
    constant,
    together,
    traced_in,
)


def _extremes(op: Operation, input: Any, *others: Any, **named: Any) -> float | Bound:
    # The gradient of each entry has norm at most 1: a unit vector, two weights of sum 1, or the gradient of hypot.
    other = next((each for each in (*others, *named.values()) if isinstance(each, Traced | Tensor)), None)
    if other is None:
        return 1.0
    arguments = list(traced_in([input, other]))
    if any(each.value.shape != op.output.shape for each in arguments):
        return Bound(together(spread(op, argument) for argument in arguments))
    return Bound(as_one(argument.bound for argument in arguments))


for_functions("fmax fmin logaddexp logaddexp2 hypot")(_extremes)


def _extreme(place: str) -> Rule:
    """Return the rule of a maximum or minimum. They are two different parts of the sorted values."""

    def rule(op: Operation, input: Any, *others: Any, **named: Any) -> Bound:
        result = _extremes(op, input, *others, **named)
        arguments = list(traced_in([input, others, named]))
        if isinstance(result, Bound):
            has_ends = len(arguments) == 2 and all(each.value.shape == op.output.shape for each in arguments)  # noqa: PLR2004
            whole, value, kind = tuple(sorted((each.bound for each in arguments), key=id)), result.value, "pair"
        else:
            first = op.output[0] if isinstance(op.output, tuple) else op.output
            result = arguments[0].bound.after(result)
            has_ends = arguments[0].value.numel() >= 2 * first.numel()
            dim = named.get("dim", others[0] if others else None)
            whole, value, kind = (arguments[0].bound,), arguments[0].bound.value, f"ends along {dim}"
        return replace(result, parts=(*result.parts, Part(whole, value, kind, place))) if has_ends else result

    return rule


for_functions("maximum max amax")(_extreme("largest"))
for_functions("minimum min amin")(_extreme("least"))


@for_functions("sort msort topk kthvalue median nanmedian aminmax")
def _order(op: Operation, input: Traced, *_: Any, **__: Any) -> float:
    # Order statistics move no more than the entries. `aminmax` may return the same entry twice.
    return math.sqrt(2) if isinstance(op.output, tuple) and hasattr(op.output, "max") else 1.0


@for_functions("sum nansum")
def _sum(op: Operation, input: Traced, *_: Any, **__: Any) -> float:
    return math.sqrt(input.value.numel() / max(op.output.numel(), 1))


@for_functions("mean")
def _mean(op: Operation, input: Traced, *_: Any, **__: Any) -> float:
    return math.sqrt(op.output.numel() / max(input.value.numel(), 1))


@for_functions("trace")
def _trace(op: Operation, input: Traced) -> float:
    return math.sqrt(min(input.value.shape))


@for_functions("quantile nanquantile")
def _quantile(op: Operation, input: Traced, q: Any, *_: Any, **__: Any) -> float:
    # Each quantile is a mean of two order statistics.
    constant(q)
    return math.sqrt(q.numel()) if isinstance(q, Tensor) else 1.0


@for_functions("std std_mean")
def _deviation(
    op: Operation, input: Traced, *rest: Any, unbiased: bool = True, correction: Any = None, **__: Any
) -> float:
    r"""Return :math:`1 / \sqrt{n - c}`: the norm of the differences from the mean is divided by that root."""
    flags = [each for each in rest if isinstance(each, bool)]
    removed = float(correction) if correction is not None else float(flags[0] if flags else unbiased)
    first = op.output[0] if isinstance(op.output, tuple) else op.output
    count = input.value.numel() / max(first.numel(), 1)
    if count <= removed:
        msg = f"a deviation of {count:g} numbers with the correction {removed:g} divides by zero"
        raise NoBoundError(msg)
    # `std_mean` also returns the mean, whose factor is one over the root of the count.
    return 1 / math.sqrt(count - max(removed, 0.0) if isinstance(op.output, tuple) else count - removed)


@for_functions("norm")
def _norm(op: Operation, input: Traced, p: Any = "fro", *_: Any, **__: Any) -> float:
    return _vector_norm(op, input, 2 if p in {"fro", None} else p)


def _vector_norm(op: Operation, input: Traced, ord: Any = 2, *_: Any, **__: Any) -> float:
    if isinstance(ord, str) or ord < 1:
        msg = f"its rule covers only norms of order 1 or more, got {ord!r}"
        raise NoBoundError(msg)
    count = input.value.numel() / max(op.output.numel(), 1)
    return float(max(1.0, count ** (1 / ord - 1 / 2)))


for_function(torch.linalg.vector_norm, _vector_norm)


def _linalg_norm(op: Operation, input: Traced, ord: Any = None, *_: Any, **__: Any) -> float:
    if ord not in {None, "fro", 2}:
        msg = f"its rule covers only `ord` None, 'fro' and 2, got {ord!r}"
        raise NoBoundError(msg)
    return 1.0


for_function(torch.linalg.norm, _linalg_norm)


@for_functions("normalize")
def _normalize(
    op: Operation, input: Traced, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None
) -> float:
    if p != 2:  # noqa: PLR2004  # the Euclidean norm
        msg = f"its rule covers only `p=2`, got {p}"
        raise NoBoundError(msg)
    shortest = input.shortest(lambda value: value.movedim(dim, -1)) if isinstance(dim, int) else 0.0
    least = max(eps, shortest)
    return UPWARDS / least if least > 0 else math.inf


def _distances(op: Operation, first: Any, second: Any, p: float, count: int, entries: int) -> Bound:
    """Return the bound of `entries` norms of `count` differences each."""
    if p < 1:
        msg = f"its rule covers only `p` of at least 1, got {p!r}"
        raise NoBoundError(msg)
    factor = max(1.0, count ** (1 / p - 1 / 2)) * UPWARDS
    # If an argument broadcasts, it appears several times.
    copies = [(each, math.sqrt(entries / max(each.value.numel(), 1))) for each in traced_in([first, second])]
    return Bound(sum(times(each.bound.value, factor * times_there) for each, times_there in copies))


@for_functions("pairwise_distance")
def _pairwise_distance(
    op: Operation, x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Bound:
    shape = common_shape(x1, x2)
    return _distances(op, x1, x2, p, shape[-1], shape.numel())


@for_modules(nn.PairwiseDistance)
def _pairwise_distance_layer(op: Operation, x1: Any, x2: Any) -> Bound:
    return _pairwise_distance(op, x1, x2, op.module.norm)


@for_functions("cdist")
def _cdist(op: Operation, x1: Any, x2: Any, p: float = 2.0, compute_mode: Any = None) -> Bound:
    count = int((x1.value if isinstance(x1, Traced) else x1).shape[-1])
    return _distances(op, x1, x2, p, count, op.output.numel() * count)


@for_functions("dist")
def _dist(op: Operation, input: Any, other: Any, p: float = 2) -> Bound:
    entries = common_shape(input, other).numel()
    return _distances(op, input, other, p, entries, entries)
