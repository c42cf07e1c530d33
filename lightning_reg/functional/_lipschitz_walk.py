"""The walk over a module's graph: the bound of its output, of each layer, and what has none."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from lightning_reg.functional import (  # noqa: F401  # each adds its rules
    _lipschitz_activations,
    _lipschitz_layers,
    _lipschitz_pooling,
    _lipschitz_tensors,
)
from lightning_reg.functional import _lipschitz_rules as rules
from lightning_reg.functional._bounds import Bound, NoBoundError, Operation, Slopes, Traced, times, together, traced_in
from lightning_reg.functional._lipschitz_trace import JUMPS, Judge, Root, Tracer, generator_states, unchanged_generators
from lightning_reg.functional._stand_in import stand_in

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class RuleError(Exception):
    """What a user's rule raised."""


class Walk(Judge):
    """Traces the stand-in of a module once, and keeps what was found.

    Args:
        module: The stand-in.
        inputs: The example.
        fold: Whether batch normalization is folded into the layer before it.

    """

    def __init__(self, module: nn.Module, inputs: Sequence[Any], *, fold: bool) -> None:
        self.value = math.inf
        self.per_layer: dict[str, float] = {}
        self.unbounded: list[tuple[str, str]] = []
        self._root = Root(module)
        self._inputs = inputs
        self._fold = fold
        self._reasons: dict[Node, tuple[str, str]] = {}
        self._layers: dict[Node, tuple[str, float]] = {}
        self._floats = any(isinstance(value, Tensor) and value.is_floating_point() for value in inputs)
        self._tracer = Tracer(self, self._is_leaf, rules.own_functions(), inputs)
        self._go()

    def _go(self) -> None:
        before = generator_states(self._inputs)
        try:
            self._tracer.trace(self._root)
        except RuleError as error:
            raise error.__cause__ or error from None
        except Exception as error:  # noqa: BLE001  # whatever the module does
            self.unbounded = [("trace", f"{type(error).__name__}: {error}")]
            return
        bounds, needed = self._tracer.bound_of_output()
        self.value = together(bound.value for bound in bounds)
        self.unbounded = list(dict.fromkeys(why for node, why in self._reasons.items() if node in needed))
        for name, own in self._layers.values():
            self.per_layer[name] = max(own, self.per_layer.get(name, 0.0), key=lambda x: (math.isnan(x), x))

    def judge(self, node: Node, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound | None:
        """Return the bound of the value of `node`."""
        if node.op == "placeholder":
            return self._of_input(node, value)
        rule = self._rule(node)
        if rule is None:
            return self.refuse(node, f"no rule for {_kind(node, self._module(node))}; `register_lipschitz_rule` adds one")
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            return self.refuse(node, JUMPS)
        operation = Operation(value, self._tracer.operation(node), self._module(node))
        try:
            bound, own = apply_rule(rule, operation, args, kwargs)
        except NoBoundError as error:
            return self.refuse(node, str(error))
        self._note_layer(node, own)
        if math.isinf(own) and isinstance(rule, rules.UserRule):
            self.refuse(node, "its rule says so")
        return bound if self._fold else replace(bound, scaled=None)

    def refuse(self, node: Node, reason: str) -> Bound:
        """Return infinity, and keep the reason."""
        self._reasons[node] = self._name(node), reason
        if node.op == "call_module":
            self._note_layer(node, math.inf)
        return Bound(math.inf)

    def _of_input(self, node: Node, value: Any) -> Bound | None:
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return Bound(1.0)
        if self._floats or not isinstance(value, Tensor):
            return None
        # An index: what comes after it says why there is no bound.
        return Bound(math.inf)

    def _module(self, node: Node) -> nn.Module | None:
        return self._root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _rule(self, node: Node) -> rules.Rule | rules.UserRule | None:
        module = self._module(node)
        return rules.function_rule(node.target) if module is None else rules.module_rule(module)  # type: ignore[arg-type]

    def _is_leaf(self, module: nn.Module) -> bool:
        if rules.module_rule(module) is not None:
            return True
        own = "forward" in vars(module) or not type(module).forward.__module__.startswith("torch.nn")
        return not own and not isinstance(module, _CONTAINERS)

    def _name(self, node: Node) -> str:
        if node.op == "call_module":
            return self._clean(str(node.target))
        path = self._clean(node.meta.get("path", ""), root="")
        operation = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return f"{path}.{operation}" if path else operation

    def _clean(self, path: str, root: str | None = None) -> str:
        """Return the path in the user's module, which itself goes by the name of its class."""
        name = path.removeprefix("module").removeprefix(".")
        return name or (type(self._root.module).__name__ if root is None else root)

    def _note_layer(self, node: Node, own: float) -> None:
        """Keep the constant of a layer with weights."""
        module = self._module(node)
        if module is not None:
            if next(module.parameters(), None) is not None:
                self._layers[node] = self._clean(str(node.target)), own
            return
        weight = next((each for each in node.all_input_nodes if each.op == "get_attr"), None)
        if weight is not None and str(weight.target).startswith("module.") and _is_layer(node):
            self._layers[node] = self._clean(str(weight.target)).removesuffix(".weight"), own


def apply_rule(
    rule: rules.Rule | rules.UserRule, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Bound, float]:
    """Return the bound of the result of an operation, and the constant of the operation alone.

    Raises:
        NoBoundError: If there is no bound, or none that is known.
        RuleError: If a user's rule raises, or returns no constant.

    """
    traced = list(traced_in([args, kwargs]))
    if isinstance(rule, rules.UserRule):
        own = _ask(rule, operation, args, kwargs)
        return Bound(times(together(each.bound.value for each in traced), own)), own
    result = rule(operation, *args, **kwargs)
    if isinstance(result, Bound):
        return result, math.nan if result.own is None else result.own
    if len(traced) != 1:
        msg = "no rule for it, if more than one of its arguments depends on the input"
        raise NoBoundError(msg)
    bound = traced[0].bound
    if not isinstance(result, Slopes):
        return bound.after(result), result
    factor = math.nan if math.isnan(result.high) else max(abs(result.low), abs(result.high))
    before, after = traced[0].value.numel(), operation.output.numel()
    if before == after:
        return bound.after(factor, result), factor
    factor *= math.sqrt(after / before)
    return bound.after(factor), factor


def _ask(rule: rules.UserRule, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    module = () if operation.module is None else (operation.module,)
    plain = rules.plain(args), rules.plain(kwargs)
    try:
        answer = rule.function(*module, *plain[0], **plain[1])
        own = float(answer)
    except Exception as error:
        raise RuleError from error
    if own < 0:
        msg = f"A rule must return a Lipschitz constant, a number >= 0, but {rule.function!r} returned {answer!r}."
        raise RuleError from ValueError(msg)
    return own


def _kind(node: Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__
    return f"`{node.target if isinstance(node.target, str) else getattr(node.target, '__name__', node.target)}`"


def _is_layer(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in {"linear", "matmul", "mm"} or "conv" in name or name.endswith("norm")


def walk(module: nn.Module, inputs: Sequence[Any], *, fold: bool) -> tuple[float, dict[str, float], tuple[tuple[str, str], ...]]:
    """Return the bound of `module`, that of each of its layers, and what has none."""
    found = Walk(stand_in(module), inputs, fold=fold)
    return found.value, found.per_layer, tuple(found.unbounded)
