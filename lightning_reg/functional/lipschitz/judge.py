"""What an operation in the traced graph does to the bound: the rules are asked, and what they say is kept."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx.node import Node

import lightning_reg.functional.lipschitz.rules  # noqa: F401  # each file there registers its rules
from lightning_reg.functional.lipschitz.rules.applied import apply_rule
from lightning_reg.functional.lipschitz.rules.registry import function_rule, module_rule
from lightning_reg.functional.lipschitz.value import Bound, NoBoundError, Operation, larger

JUMPS = "whole numbers and comparisons jump: they have no Lipschitz constant"


class Judge:
    """Knows the bounds of operations: asks the rules, and keeps what they say.

    Args:
        root: The module in which the nodes are.
        has_floats: Whether the network has an input of floating-point numbers.
        fold: Whether batch normalization is folded into the layer before it.

    """

    def __init__(self, root: nn.Module, *, has_floats: bool, fold: bool) -> None:
        self._root, self._has_floats, self._fold = root, has_floats, fold
        self._reasons: dict[Node, tuple[str, str]] = {}
        self._layers: list[tuple[str, float]] = []

    def reasons_among(self, nodes: set[Node]) -> tuple[tuple[str, str], ...]:
        """Return names and reasons of what has no bound among `nodes`, each once."""
        return tuple(dict.fromkeys(why for node, why in self._reasons.items() if node in nodes))

    def per_layer(self) -> dict[str, float]:
        """Return the constant of each layer with weights; the largest, if inputs of several sizes make several."""
        found: dict[str, float] = {}
        for name, own in self._layers:
            found[name] = larger(own, found.get(name, 0.0))
        return found

    def of_input(self, value: Any) -> Bound | None:
        """Return the bound of an argument of the network; None for one that is held fixed."""
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return Bound(1.0)
        # Whole numbers are held fixed. Where there is nothing else, what they go into says why there is no bound.
        return None if self._has_floats or not isinstance(value, Tensor) else Bound(math.inf)

    def judge(self, node: Node, operation: Callable[..., Any], value: Any, args: Any, kwargs: Any) -> Bound:
        """Return the bound of `value`, which `operation` has made at `node`.

        In the arguments, what depends on the input is `Traced`.
        """
        module = self._module(node)
        rule = function_rule(node.target) if module is None else module_rule(module)
        if rule is None:
            kind = f"`{_function_name(node)}`" if module is None else type(module).__name__
            return self.refuse(node, f"no rule for {kind}; `register_lipschitz_rule` adds one")
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            return self.refuse(node, JUMPS)
        try:
            bound, own = apply_rule(rule, Operation(value, operation, module), args, kwargs)
        except NoBoundError as error:
            return self.refuse(node, str(error))
        if own is not None:
            self._note_layer(node, own)
        return bound if self._fold else replace(bound, scaled=None)

    def refuse(self, node: Node, reason: str) -> Bound:
        """Return the bound of what has none."""
        self._reasons[node] = self._name(node), reason
        self._note_layer(node, math.inf)
        return Bound(math.inf)

    def is_leaf(self, module: nn.Module) -> bool:
        """Tell whether a module is judged as a whole."""
        if module_rule(module) is not None:
            return True
        from_torch = "forward" not in vars(module) and type(module).__module__.startswith("torch.nn")
        return from_torch and not isinstance(module, nn.Sequential)

    def _module(self, node: Node) -> nn.Module | None:
        return self._root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _name(self, node: Node) -> str:
        if node.op == "call_module":
            return self._user_path(str(node.target)) or type(self._root.get_submodule("module")).__name__
        path = self._user_path(node.meta.get("path", ""))
        return f"{path}.{_function_name(node)}" if path else _function_name(node)

    def _user_path(self, path: str) -> str:
        return path.removeprefix("module").removeprefix(".")

    def _note_layer(self, node: Node, own: float) -> None:
        """Keep the constant of what has weights: a module, or a function of parameters."""
        module = self._module(node)
        if module is not None:
            if next(module.parameters(), None) is not None:
                self._layers.append((self._name(node), own))
            return
        weights = (str(each.target) for each in node.all_input_nodes if each.op == "get_attr")
        weight = next((self._user_path(path) for path in weights if path.startswith("module.")), None)
        if weight is not None and _is_layer(_function_name(node)):
            self._layers.append((weight.removesuffix(".weight"), own))


def _function_name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _is_layer(name: str) -> bool:
    return name in {"linear", "matmul", "mm", "prelu"} or "conv" in name or name.endswith("_norm")
