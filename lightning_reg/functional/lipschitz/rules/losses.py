r"""Rules of losses with a constant target, as functions of the prediction.

A loss that sums over entries, :math:`\sum_i l_i(x_i)` with slopes of at most :math:`m_i`, has a gradient of norm at
most :math:`\|m\|_2`. Without the sum, the vector of all :math:`l_i` has the bound :math:`\max m_i`. A mean divides
the bound of the sum by the number of terms.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_reg.functional.lipschitz.rounding import UPWARDS, precise, times
from lightning_reg.functional.lipschitz.rules.arithmetic import common_shape, spread
from lightning_reg.functional.lipschitz.rules.registry import Rule, for_function, without_bound
from lightning_reg.functional.lipschitz.value import (
    Bound,
    NoBoundError,
    Operation,
    Traced,
    constant,
    largest,
    traced_in,
)


def _reduced(slopes: Tensor, reduction: str, count: float) -> float:
    """Return the factor of a loss with these slopes, one for each entry. A mean divides by `count`."""
    if reduction == "none":
        return largest(slopes)
    norm = float(torch.linalg.vector_norm(precise(slopes))) * UPWARDS
    if not math.isfinite(norm):
        return math.nan
    return norm if reduction == "sum" else norm / count if count > 0 else math.nan


def _difference(op: Operation, input: Any, target: Any, slope: float, weight: Any, reduction: str) -> Bound:
    """Return the bound of a loss of the difference of two values, whose slope is at most `slope`."""
    factor = torch.ones((), dtype=torch.float64) if weight is None else precise(constant(weight)).abs()
    shape = common_shape(input, target, factor)
    reduced = _reduced(slope * factor.expand(shape), reduction, shape.numel())
    broadcast = Operation(torch.empty(shape, device="meta"), op.apply)
    return Bound(sum(times(spread(broadcast, each), reduced) for each in traced_in([input, target])))


def _l1(op: Operation, input: Any, target: Any, reduction: str = "mean") -> Bound:
    return _difference(op, input, target, 1.0, None, reduction)


def _smooth_l1(op: Operation, input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Bound:
    return _difference(op, input, target, 1.0, None, reduction)


def _huber(
    op: Operation, input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None
) -> Bound:
    return _difference(op, input, target, abs(delta), weight, reduction)


def _kl_div(op: Operation, input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> float:
    shares = precise(constant(target))
    shares = shares.exp() if log_target else shares
    shape = common_shape(input, shares)
    # The loss is linear in the logarithms. The gradient of an entry is the sum of the targets it appears with.
    terms = shares.abs().expand(shape)
    if reduction == "none":
        return largest(terms.square().sum_to_size(input.value.shape).sqrt())
    slopes = terms.sum_to_size(input.value.shape)
    if reduction != "batchmean":
        return _reduced(slopes, reduction, shape.numel())
    return _reduced(slopes, "mean", input.value.shape[0] if input.value.ndim else 1)


def _bce_with_logits(
    op: Operation, input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> float:
    r"""Return the factor. The slope :math:`w (1 - y) \sigma - w p y (1 - \sigma)` is linear in :math:`\sigma`."""
    constant([target, weight, pos_weight])
    shares = precise(target)
    ones = torch.ones((), dtype=torch.float64, device=shares.device)
    positive = shares * (ones if pos_weight is None else precise(pos_weight))
    slopes = torch.maximum(positive.abs(), (1 - shares).abs()) * (ones if weight is None else precise(weight).abs())
    return _reduced(slopes.expand(input.value.shape), reduction, input.value.numel())


def _soft_margin(op: Operation, input: Any, target: Any, reduction: str = "mean") -> float:
    return _reduced(precise(constant(target)).abs().expand(input.value.shape), reduction, input.value.numel())


def _hinge_embedding(op: Operation, input: Any, target: Any, margin: float = 1.0, reduction: str = "mean") -> Bound:
    return _difference(op, input, constant(target), 1.0, None, reduction)


def _margin_ranking(
    op: Operation, input1: Any, input2: Any, target: Any, margin: float = 0, reduction: str = "mean"
) -> Bound:
    return _difference(op, input1, input2, 1.0, target, reduction)


def _nll(
    op: Operation, input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> float:
    constant([target, weight])
    weights = _class_weights(input.value, weight)
    counted = target != ignore_index
    slopes = weights[target.where(counted, 0)] * counted
    return _reduced(slopes.abs(), reduction, float(slopes.sum()))


def _cross_entropy(
    op: Operation,
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> float:
    r"""Return the factor. With weighted targets q, the gradient of :math:`-\sum_c q_c \log p_c` is :math:`s p - q`.

    Here :math:`s = \sum_c q_c`. The norm is convex in p, so it is largest if one class has probability 1. Its square is
    then :math:`\|q\|^2 + s^2 - 2 s q_c`. For a target of one class with weight 1, the norm is :math:`\sqrt 2`.
    """
    constant([target, weight])
    weights = _class_weights(input.value, weight)
    classes = len(weights)
    if target.is_floating_point():
        shares = precise(target).movedim(1 if target.ndim > 1 else 0, -1)
        shares = (1 - label_smoothing) * shares + label_smoothing / classes
        count = shares.numel() / classes
    else:
        counted = target != ignore_index
        indices = target.where(counted, 0)
        units = functional.one_hot(indices.long(), classes).double()
        shares = ((1 - label_smoothing) * units + label_smoothing / classes) * counted[..., None]
        count = float((weights[indices] * counted).sum())
    parts = shares * weights
    total = parts.sum(-1)
    squares = parts.square().sum(-1) + total.square() + (-2 * total[..., None] * parts).amax(-1)
    return _reduced(squares.clamp(min=0).sqrt(), reduction, count)


def _class_weights(input: Tensor, weight: Tensor | None) -> Tensor:
    classes = input.shape[1 if input.ndim > 1 else 0]
    return torch.ones(classes, dtype=torch.float64, device=input.device) if weight is None else precise(weight)


def _multilabel_soft_margin(
    op: Operation, input: Any, target: Any, weight: Any = None, reduction: str = "mean"
) -> float:
    constant([target, weight])
    labels = precise(target)
    slopes = torch.maximum(labels.abs(), (1 - labels).abs()) * (1 if weight is None else precise(weight).abs())
    # Each sample is a mean over classes.
    samples = torch.linalg.vector_norm(slopes.expand(input.value.shape), dim=-1) / input.value.shape[-1]
    return _reduced(samples, reduction, samples.numel())


def _triplet_margin(
    op: Operation,
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Bound:
    """Return the bound. The loss uses two of three distances, so an argument appears in one or both."""
    shape = common_shape(anchor, positive, negative)
    broadcast = Operation(torch.empty(shape, device="meta"), op.apply)
    factor = max(1.0, shape[-1] ** (1 / p - 1 / 2)) if p >= 1 else math.inf
    samples = torch.ones(shape[:-1])
    reduced = _reduced(samples, reduction, samples.numel()) * factor
    # Without a swap, only the anchor appears in both distances.
    twice = [(anchor, 2.0), (positive, 2.0 if swap else 1.0), (negative, 2.0 if swap else 1.0)]
    return Bound(
        sum(times(spread(broadcast, each), reduced * slope) for each, slope in twice if isinstance(each, Traced))
    )


def _by_name(function: Callable[..., Any], rule: Rule) -> Rule:
    """Return `rule` for arguments in the order of `function`, without the deprecated ones."""
    signature = inspect.signature(function)

    def by_name(op: Operation, *args: Any, **kwargs: Any) -> Any:
        named = signature.bind(*args, **kwargs).arguments
        if any(named.pop(name, None) is not None for name in ("size_average", "reduce")):
            msg = "its rule does not cover the deprecated `size_average` and `reduce`; use `reduction`"
            raise NoBoundError(msg)
        return rule(op, **named)

    return by_name


_RULES: dict[Callable[..., Any], Rule] = {
    functional.l1_loss: _l1,
    functional.smooth_l1_loss: _smooth_l1,
    functional.huber_loss: _huber,
    functional.kl_div: _kl_div,
    functional.binary_cross_entropy_with_logits: _bce_with_logits,
    functional.soft_margin_loss: _soft_margin,
    functional.hinge_embedding_loss: _hinge_embedding,
    functional.margin_ranking_loss: _margin_ranking,
    functional.nll_loss: _nll,
    functional.cross_entropy: _cross_entropy,
    functional.multilabel_soft_margin_loss: _multilabel_soft_margin,
    functional.triplet_margin_loss: _triplet_margin,
}
for _function, _rule in _RULES.items():
    for_function(_function, _by_name(_function, _rule))
for _function in (functional.mse_loss, functional.gaussian_nll_loss):
    for_function(_function, without_bound("it squares its input, and the derivative of a square is unbounded"))
for _function in (functional.binary_cross_entropy, functional.poisson_nll_loss, functional.cosine_embedding_loss):
    for_function(_function, without_bound("its derivative is unbounded, so it has no finite Lipschitz constant"))
