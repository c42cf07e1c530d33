"""What an operation does to the bound: the rules are asked, and what they say is kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

import lightning_reg.functional.lipschitz.rules  # noqa: F401  # each file there registers its rules
from lightning_reg.functional.lipschitz.rules.applied import apply_rule
from lightning_reg.functional.lipschitz.rules.registry import EXTENTS, Rule, UserRule, function_rule, module_rule
from lightning_reg.functional.lipschitz.value import Bound, Extent, NoBoundError, Operation, larger

JUMPS = "whole numbers and comparisons jump: they have no Lipschitz constant"
# What torch writes in Python out of operations that have rules of their own.
_LOOKED_INTO = {"torch.nn.modules.container", "torch.nn.modules.loss", "torch.nn.modules.transformer"}


@dataclass(eq=False)
class Step:
    """One operation on the way from the input to the output."""

    name: str
    """Where in the module, and what."""
    rule: Rule | UserRule | None = None
    kind: str = ""
    """What has no rule, if there is none."""
    module: nn.Module | None = None
    weight: str | None = None
    """The name of a parameter among the arguments."""
    parents: list["Step"] = field(default_factory=list)
    """What it depends on."""
    extent: Rule | None = None
    """The rule of how large its result gets."""


class Judge:
    """Knows the bounds of operations: asks the rules, and keeps what they say.

    Args:
        has_floats: Whether the network has an input of floating-point numbers.
        fold: Whether batch normalization is folded into the layer before it.

    """

    def __init__(self, *, has_floats: bool, fold: bool) -> None:
        self._has_floats, self._fold = has_floats, fold
        self._reasons: dict[Step, tuple[str, str]] = {}
        self._layers: list[tuple[str, float]] = []

    def reasons_among(self, steps: set[Step]) -> tuple[tuple[str, str], ...]:
        """Return names and reasons of what has no bound among `steps`, each once."""
        return tuple(dict.fromkeys(why for step, why in self._reasons.items() if step in steps))

    def per_layer(self) -> dict[str, float]:
        """Return the constant of each layer with weights; the largest, if inputs of several sizes make several."""
        found: dict[str, float] = {}
        for name, own in self._layers:
            found[name] = larger(own, found.get(name, 0.0))
        return found

    def of_input(self, value: Tensor) -> Bound | None:
        """Return the bound of an argument of the network; None for one that is held fixed."""
        if value.is_floating_point() or value.is_complex():
            return Bound(1.0)
        # Whole numbers are held fixed. Where there is nothing else, what they go into says why there is no bound.
        return None if self._has_floats else Bound(math.inf)

    def judge(self, step: Step, operation: Callable[..., Any], value: Any, args: Any, kwargs: Any) -> Bound:
        """Return the bound of `value`, which `operation` has made in `step`.

        In the arguments, what depends on the input is `Traced`.
        """
        if step.rule is None:
            return self.refuse(step, f"no rule for {step.kind}; `register_lipschitz_rule` adds one")
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            return self.refuse(step, JUMPS)
        done = Operation(value, operation, step.module)
        try:
            bound, own = apply_rule(step.rule, done, args, kwargs)
        except NoBoundError as error:
            return self.refuse(step, str(error))
        if own is not None:
            self._note_layer(step, own)
        extent = step.extent(done, bound, *args, **kwargs) if step.extent else bound.extent
        return replace(bound, scaled=bound.scaled if self._fold else None, extent=extent or Extent())

    def refuse(self, step: Step, reason: str) -> Bound:
        """Return the bound of what has none."""
        self._reasons[step] = step.name, reason
        self._note_layer(step, math.inf)
        return Bound(math.inf)

    def is_leaf(self, module: nn.Module) -> bool:
        """Tell whether a module is judged as a whole."""
        if module_rule(module) is not None:
            return True
        origin = type(module).__module__
        return "forward" not in vars(module) and origin.startswith("torch.nn") and origin not in _LOOKED_INTO

    def rule_of(self, called: nn.Module | Callable[..., Any], name: str = "") -> Rule | UserRule | None:
        """Return the rule of a module, or of a function that goes by `name`, if there is one."""
        return module_rule(called) if isinstance(called, nn.Module) else function_rule(called, name)

    def extent_of(self, called: nn.Module | Callable[..., Any], name: str = "") -> Rule | None:
        """Return the rule of how large a result gets, if there is one."""
        found = module_rule(called, EXTENTS) if isinstance(called, nn.Module) else function_rule(called, name, EXTENTS)
        return None if isinstance(found, UserRule) else found

    def _note_layer(self, step: Step, own: float) -> None:
        """Keep the constant of what has weights: a module, or a function of parameters."""
        if step.module is not None:
            if next(step.module.parameters(), None) is not None:
                self._layers.append((step.name, own))
        elif step.weight is not None and _is_layer(step.name.rpartition(".")[2]):
            self._layers.append((step.weight.removesuffix(".weight"), own))


def _is_layer(name: str) -> bool:
    return name in {"linear", "matmul", "mm", "addmm", "prelu"} or "conv" in name or name.endswith("_norm")
