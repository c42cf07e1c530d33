r"""The step sizes of optimizers: how far a weight moves for a gradient of 1. A proximal step shrinks in proportion.

A weight rests where the optimizer's step and the proximal step cancel. This is the minimum of the objective only if
both use the same step size: :math:`\eta_i` is the step of weight :math:`i` divided by its gradient, for a constant
gradient.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from lightning_reg import _checks
from lightning_reg.functional.tensors.chunks import NumberOrTensor, alike

States = Sequence[Mapping[str, Any]]
StepSize = Callable[[Sequence[Tensor], States, Mapping[str, Any]], Sequence[NumberOrTensor]]
"""Maps weights, the optimizer's state of each and the parameter group to a number or tensor for each weight."""


@dataclass(frozen=True)
class Rule:
    """The step sizes of one type of optimizer."""

    step_sizes: StepSize
    elementwise: bool
    proportional_to_lr: bool = False
    """Whether step sizes are proportional to the `lr` of the group: scaling then costs nothing."""
    varies: bool = False
    """Whether the entries of a weight are known to have step sizes of their own."""

    def scaled(
        self, weights: Sequence[Tensor], states: States, group: Mapping[str, Any], scale: NumberOrTensor
    ) -> list[NumberOrTensor]:
        """Return `scale` times the step size of each weight."""
        if self.proportional_to_lr:
            return list(self.step_sizes(weights, states, {**group, "lr": group["lr"] * scale}))
        return [size * scale for size in self.step_sizes(weights, states, group)]


_RULES: dict[type[Optimizer], Rule] = {}


def register_step_size(optimizer_type: type[Optimizer], function: StepSize, *, elementwise: bool = False) -> None:
    r"""Register the step sizes of an optimizer for `mode="proximal"`.

    SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad and RMSprop of `torch.optim` are known, with all their options, and
    so are subclasses that do not override `step`.

    Args:
        optimizer_type: The class of the optimizer. A second registration replaces the first.
        function: Called as `function(weights, states, group)` after each step, with weights of one parameter group, the
            optimizer's state of each, and the group. It returns the step size :math:`\eta \ge 0` of each weight, a
            number or a tensor that broadcasts to the weight: the distance by which the optimizer moves the weight in
            one step, divided by its gradient, for a gradient that is constant over many steps. It must not change its
            arguments, and must not read a tensor's value (`.item()`), because that would wait for the device.
        elementwise: Whether the step size of an entry depends only on the same entry of each tensor in the state. Large
            or sharded weights are then processed in parts, which is faster: the function gets flat parts of weight and
            state. Otherwise it gets them as the optimizer holds them.

    Raises:
        TypeError: If `optimizer_type` is not an optimizer class, `function` not callable or `elementwise` not a bool.

    Example:
        >>> import torch
        >>> class Descent(torch.optim.Optimizer):
        ...     def __init__(self, parameters, rate):
        ...         super().__init__(parameters, {"rate": rate})
        ...     def step(self):
        ...         for group in self.param_groups:
        ...             for weight in group["params"]:
        ...                 weight.data -= group["rate"] * weight.grad
        >>> register_step_size(Descent, lambda weights, states, group: [group["rate"]] * len(weights), elementwise=True)

    """
    if not (isinstance(optimizer_type, type) and issubclass(optimizer_type, Optimizer)):  # type: ignore[redundant-expr]  # users may be untyped
        msg = f"`optimizer_type` must be a subclass of torch.optim.Optimizer, got {optimizer_type!r}."
        raise TypeError(msg)
    _checks.function("function", function, "callable as function(weights, states, group)")
    _RULES[optimizer_type] = Rule(function, _checks.boolean("elementwise", elementwise))


def find_rule(optimizer_type: type[Optimizer]) -> Rule | None:
    """Return the rule for the nearest ancestor that takes the same step; `None` if there is none."""
    for ancestor in optimizer_type.__mro__:
        if ancestor in _RULES:
            # torch wraps the `step` of every class.
            same = inspect.unwrap(optimizer_type.step) is inspect.unwrap(ancestor.step)
            return _RULES[ancestor] if same else None
    return None


def known_optimizers() -> list[str]:
    """Return the names of the optimizers with a rule."""
    return [optimizer_type.__name__ for optimizer_type in _RULES]


def _sgd(weights: Sequence[Tensor], states: States, group: Mapping[str, Any]) -> list[NumberOrTensor]:
    step = group["lr"]
    if group["momentum"]:
        # Each gradient counts again in later steps, times `momentum` each time: a geometric series.
        step = step * (1 - group["dampening"]) / (1 - group["momentum"])
    return [step] * len(weights)


def _adam(weights: Sequence[Tensor], states: States, group: Mapping[str, Any]) -> Sequence[NumberOrTensor]:
    second_moment = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    corrections = [_correction(group["betas"][1], _count(state)) for state in states]
    return _over_roots(
        [state[second_moment] for state in states],
        [group["lr"] * correction for correction in corrections],
        [group["eps"] * correction for correction in corrections],
    )


def _nadam(weights: Sequence[Tensor], states: States, group: Mapping[str, Any]) -> Sequence[NumberOrTensor]:
    (beta1, beta2), decay = group["betas"], group["momentum_decay"]
    numerators, summands = [], []
    for state in states:
        step = _count(state)
        # The gradient and its mean have weights that sum to 1 only in the long run, after thousands of steps.
        now, following = (beta1 * (1 - 0.5 * 0.96 ** (count * decay)) for count in (step, step + 1))
        product = _number(state["mu_product"])
        share = (1 - now) / (1 - product) + following * (1 - beta1**step) / (1 - product * following)
        correction = _correction(beta2, step)
        numerators.append(group["lr"] * share * correction)
        summands.append(group["eps"] * correction)
    return _over_roots([state["exp_avg_sq"] for state in states], numerators, summands)


def _radam(weights: Sequence[Tensor], states: States, group: Mapping[str, Any]) -> Sequence[NumberOrTensor]:
    beta2 = group["betas"][1]
    longest = 2 / (1 - beta2) - 1
    roots = _over_roots([state["exp_avg_sq"] for state in states], [1.0] * len(states), [group["eps"]] * len(states))
    sizes: list[NumberOrTensor] = []
    for state, root in zip(states, roots, strict=True):
        step = _count(state)
        length = longest - 2 * step * beta2**step / (1 - beta2**step)
        ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        if isinstance(length, Tensor):
            adaptive = group["lr"] * ratio.clamp(min=0) ** 0.5 * _correction(beta2, step) * root
            sizes.append(torch.where(length > _SHORTEST, adaptive, group["lr"]))
        elif length > _SHORTEST:
            sizes.append(group["lr"] * ratio**0.5 * _correction(beta2, step) * root)
        else:
            sizes.append(group["lr"])
    return sizes


# RAdam uses the second moment only if its average covers more steps than this.
_SHORTEST = 5.0


def _adamax(weights: Sequence[Tensor], states: States, group: Mapping[str, Any]) -> Sequence[NumberOrTensor]:
    return _divided([group["lr"]] * len(states), torch._foreach_reciprocal([state["exp_inf"] for state in states]))


def _adagrad(weights: Sequence[Tensor], states: States, group: Mapping[str, Any]) -> Sequence[NumberOrTensor]:
    rates = [group["lr"] / (1 + (_count(state) - 1) * group["lr_decay"]) for state in states]
    return _over_roots([state["sum"] for state in states], rates, [group["eps"]] * len(states))


def _rmsprop(weights: Sequence[Tensor], states: States, group: Mapping[str, Any]) -> Sequence[NumberOrTensor]:
    squares = [state["square_avg"] for state in states]
    if group["centered"]:
        means = [state["grad_avg"] for state in states]
        squares = list(torch._foreach_addcmul(squares, means, means, value=-1))
    rate = group["lr"] / (1 - group["momentum"])
    return _over_roots(squares, [rate] * len(states), [group["eps"]] * len(states))


# Numbers that neither overflow nor vanish as factors of roots.
_HUGE = 1e18
_WIDE = (torch.float32, torch.float64)


def _over_roots(
    squares: list[Tensor], numerators: Sequence[NumberOrTensor], summands: Sequence[NumberOrTensor]
) -> tuple[Tensor, ...]:
    """Return each numerator / (square root + summand)."""
    roots = torch._foreach_sqrt(squares)
    factors = [number for number in numerators if not isinstance(number, Tensor) and 1 / _HUGE < number < _HUGE]
    if len(factors) == len(roots) and all(root.device.type == "cpu" and root.dtype in _WIDE for root in roots):
        # One pass less, for 1 / (summand / numerator + root / numerator).
        for root, factor, summand in zip(roots, factors, summands, strict=True):
            torch.add(torch.as_tensor(summand / factor, dtype=root.dtype), root, alpha=1 / factor, out=root)
        torch._foreach_reciprocal_(roots)
        return roots
    torch._foreach_add_(roots, alike(summands))
    torch._foreach_reciprocal_(roots)
    return _divided(numerators, roots)


def _divided(numerators: Sequence[NumberOrTensor], reciprocals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    torch._foreach_mul_(reciprocals, alike(numerators))
    return reciprocals


def _count(state: Mapping[str, Any]) -> NumberOrTensor:
    """Return the number of steps of a weight, at least 1: the fp16 scaler may have skipped all of them."""
    step = _number(state["step"])
    return step.clamp(min=1) if isinstance(step, Tensor) else max(step, 1.0)


def _number(value: NumberOrTensor) -> NumberOrTensor:
    """Return a CPU tensor as a number; return a tensor on another device unchanged, because reading it would wait."""
    return float(value) if not isinstance(value, Tensor) or value.device.type == "cpu" else value


def _correction(beta2: NumberOrTensor, step: NumberOrTensor) -> NumberOrTensor:
    """Return the factor by which the root of a second moment, which starts at 0, is too small."""
    correction: NumberOrTensor = (1 - beta2**step) ** 0.5
    return correction


for _optimizer_type, _step_sizes in {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    NAdam: _nadam,
    RAdam: _radam,
    Adamax: _adamax,
    Adagrad: _adagrad,
    RMSprop: _rmsprop,
}.items():
    _RULES[_optimizer_type] = Rule(
        _step_sizes, elementwise=True, proportional_to_lr=True, varies=_optimizer_type is not SGD
    )
