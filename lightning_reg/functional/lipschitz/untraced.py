"""The bounds of single layers, at the inputs that they receive, if a module cannot be traced."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_reg.functional.lipschitz.nested import found, replaced
from lightning_reg.functional.lipschitz.rules.applied import RuleError, apply_rule
from lightning_reg.functional.lipschitz.rules.registry import Rule, UserRule, module_rule
from lightning_reg.functional.lipschitz.value import Bound, NoBoundError, Operation, Traced
from lightning_reg.functional.tensors.random import devices_of, unchanged_generators


def layers_alone(module: nn.Module, inputs: Sequence[Any]) -> tuple[tuple[str, float], ...]:
    """Run a stand-in once, and return the name and the constant of each called layer that has weights and a rule.

    The stand-in cannot be used again.
    """
    layers: list[tuple[str, float]] = []
    for name, part in module.named_modules():
        rule = module_rule(part)
        if rule is not None and next(part.parameters(), None) is not None:
            part.register_forward_hook(_noting(name or type(part).__name__, rule, layers), with_kwargs=True)
    try:
        with unchanged_generators(devices_of(list(found(inputs, Tensor)))):
            module(*inputs)
    except RuleError:
        raise
    except Exception:  # the trace failed, and its reason is reported
        pass
    return tuple(layers)


def _noting(name: str, rule: Rule | UserRule, layers: list[tuple[str, float]]) -> Any:
    def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        operation = Operation(output, layer.forward, layer)
        traced = replaced((args, kwargs), Tensor, lambda tensor: Traced(tensor, Bound(1.0)))
        try:
            _, own = apply_rule(rule, operation, *traced)
        except NoBoundError:
            own = math.inf
        if own is not None:
            layers.append((name, own))

    return hook
