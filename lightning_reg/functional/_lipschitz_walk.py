"""The walk over a module's graph: the bound of its output, of each layer, and what has none."""

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.utils import _pytree as pytree
from typing_extensions import override

from lightning_reg.functional._bounds import Bound, NoBoundError, Operation, larger, together
from lightning_reg.functional._generators import devices_of, watched_generators
from lightning_reg.functional._lipschitz_judge import Judge, RuleError, apply_rule
from lightning_reg.functional._lipschitz_rules import function_rule, module_rule, own_functions
from lightning_reg.functional._lipschitz_trace import JUMPS, Root, Tracer
from lightning_reg.functional._lipschitz_untraced import layers_alone
from lightning_reg.functional._stand_in import stand_in

# Each adds its rules.
for _kind in ("activations", "layers", "moves", "pooling", "tensors"):
    import_module(f"lightning_reg.functional._lipschitz_{_kind}")


class Findings(NamedTuple):
    """The bound, that of each layer, and what has none."""

    value: float
    per_layer: dict[str, float]
    unbounded: tuple[tuple[str, str], ...]


def walk(module: nn.Module, inputs: Sequence[Any], *, fold: bool) -> Findings:
    """Return what is known of `module` at `inputs`.

    Args:
        module: Left as it is.
        inputs: Its arguments; tensors that it may change.
        fold: Whether batch normalization is folded into the layer before it.

    """
    judge = _RuleJudge(Root(stand_in(module)), inputs, fold=fold)
    arguments = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
    try:
        with watched_generators(devices_of(inputs)) as has_drawn:
            judge.tracer.trace(judge.root)
            drawn = has_drawn()
    except RuleError as error:
        raise error.__cause__ or error from None
    except Exception as error:  # whatever a user's module does
        layers = layers_alone(stand_in(module), arguments)
        return Findings(math.inf, layers, (("trace", f"{type(error).__name__}: {error}"),))
    if drawn:
        return Findings(math.inf, judge.per_layer(), (("forward", "it draws random numbers"),))
    if not _computes(module, arguments, judge.tracer.output()):
        reason = "the traced graph computes something else than `forward`: it may ask whether its input is a Tensor"
        return Findings(math.inf, judge.per_layer(), (("trace", reason),))
    bounds, needed = judge.tracer.bound_of_output()
    value = together(bound.value for bound in bounds)
    return Findings(value, judge.per_layer(), judge.reasons_among(needed))


def _computes(module: nn.Module, arguments: Sequence[Any], traced: Any) -> bool:
    """Tell whether `module` gives what its graph gave; not asked of one that draws random numbers."""
    with watched_generators(devices_of(arguments)) as has_drawn:
        output = stand_in(module)(*arguments)
        if has_drawn():
            return True
    pairs = zip(pytree.tree_leaves(traced), pytree.tree_leaves(output), strict=False)
    return all(
        first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)
        for first, second in pairs
        if isinstance(first, Tensor) and isinstance(second, Tensor)
    )


class _RuleJudge(Judge):
    """Asks the rules, and keeps what they say."""

    def __init__(self, root: Root, inputs: Sequence[Any], *, fold: bool) -> None:
        self.root = root
        self.tracer = Tracer(self, own_functions(), inputs)
        self._fold = fold
        self._reasons: dict[Node, tuple[str, str]] = {}
        self._layers: list[tuple[str, float]] = []
        self._has_floats = any(isinstance(value, Tensor) and value.is_floating_point() for value in inputs)

    def reasons_among(self, nodes: set[Node]) -> tuple[tuple[str, str], ...]:
        """Return names and reasons of what has no bound among `nodes`, each once."""
        return tuple(dict.fromkeys(why for node, why in self._reasons.items() if node in nodes))

    def per_layer(self) -> dict[str, float]:
        """Return the constant of each layer with weights; the largest, if inputs of several sizes make several."""
        found: dict[str, float] = {}
        for name, own in self._layers:
            found[name] = larger(own, found.get(name, 0.0))
        return found

    @override
    def judge(self, node: Node, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound | None:
        if node.op == "placeholder":
            return self._of_input(value)
        module = self._module(node)
        rule = function_rule(node.target) if module is None else module_rule(module)
        if rule is None:
            kind = f"`{_function_name(node)}`" if module is None else type(module).__name__
            return self.refuse(node, f"no rule for {kind}; `register_lipschitz_rule` adds one")
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            return self.refuse(node, JUMPS)
        operation = Operation(value, self.tracer.operation(node), module)
        try:
            bound, own = apply_rule(rule, operation, args, kwargs)
        except NoBoundError as error:
            return self.refuse(node, str(error))
        if own is not None:
            self._note_layer(node, own)
        return bound if self._fold else replace(bound, scaled=None)

    @override
    def refuse(self, node: Node, reason: str) -> Bound:
        self._reasons[node] = self._name(node), reason
        self._note_layer(node, math.inf)
        return Bound(math.inf)

    @override
    def is_leaf(self, module: nn.Module) -> bool:
        if module_rule(module) is not None:
            return True
        from_torch = "forward" not in vars(module) and type(module).__module__.startswith("torch.nn")
        return from_torch and not isinstance(module, nn.Sequential)

    def _of_input(self, value: Any) -> Bound | None:
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return Bound(1.0)
        # Whole numbers are held fixed. Where there is nothing else, what they go into says why there is no bound.
        return None if self._has_floats or not isinstance(value, Tensor) else Bound(math.inf)

    def _module(self, node: Node) -> nn.Module | None:
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _name(self, node: Node) -> str:
        if node.op == "call_module":
            return self._user_path(str(node.target)) or type(self.root.module).__name__
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
