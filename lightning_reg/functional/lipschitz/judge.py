"""The judge applies the rule of each operation, and keeps the constants of layers."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import lightning_reg.functional.lipschitz.rules  # noqa: F401  # each file there registers its rules
from lightning_reg.functional.lipschitz.forms import Form
from lightning_reg.functional.lipschitz.rounding import smaller
from lightning_reg.functional.lipschitz.rules.applied import apply_rule
from lightning_reg.functional.lipschitz.rules.registry import (
    EXTENTS,
    FORMS,
    TURNS,
    Rule,
    UserRule,
    function_rule,
    module_rule,
)
from lightning_reg.functional.lipschitz.rules.sizes import ANY_SIZE, has_any_number, is_sized_by_entries
from lightning_reg.functional.lipschitz.traced_tensor import TraceError
from lightning_reg.functional.lipschitz.value import (
    Bound,
    Extent,
    NoBoundError,
    Operation,
    Traced,
    is_whole,
    largest,
    traced_in,
)

JUMPS = "whole numbers and comparisons are discontinuous, so they have no Lipschitz constant"
PLACES = (
    "the places of its results jump where two entries are equal, as in top-k routing. Bound the parts before and after"
    " it alone, or add a rule for the layer with `register_lipschitz_rule`"
)
# Files of torch whose modules consist of operations that have their own rules.
_LOOKED_INTO = {"torch.nn.modules.container", "torch.nn.modules.loss", "torch.nn.modules.transformer"}


@dataclass(eq=False)
class Step:
    """One operation on the way from the input to the output."""

    name: str
    """The path of the module and the name of the operation."""
    rule: Rule | UserRule | None = None
    kind: str = ""
    """The name of the operation, as in messages."""
    module: nn.Module | None = None
    weight: str | None = None
    """The name of a parameter among the arguments, if there is one."""
    parents: list["Step"] = field(default_factory=list)
    """The steps on whose results it depends."""
    extent: Rule | None = None
    """The rule for the extent of its result."""
    turns: tuple[float, ...] | None = None
    """For a function of each entry: the inputs at which its slope turns from rising to falling or back."""
    form: Rule | None = None
    """The rule for the form of its result."""


class Judge:
    """Determines the bounds of operations by their rules, and keeps the constants of layers.

    Args:
        has_floats: Whether the network has an input of floating-point numbers.
        fold: Whether to fold batch normalization into the layer before it.
        reach: The largest distance of the network's input from the example.
        all_labels: Whether the bounds must hold for any whole numbers among the inputs.

    """

    def __init__(self, *, has_floats: bool, fold: bool, reach: float, all_labels: bool) -> None:
        self._has_floats, self._fold, self.reach, self._all_labels = has_floats, fold, reach, all_labels
        self._reasons: dict[Step, tuple[str, str]] = {}
        self._layers: list[tuple[str, float]] = []

    def reasons_among(self, steps: set[Step]) -> tuple[tuple[str, str], ...]:
        """Return the name and reason of each of `steps` that has no bound, without repetitions."""
        return tuple(dict.fromkeys(why for step, why in self._reasons.items() if step in steps))

    def layers(self) -> tuple[tuple[str, float], ...]:
        """Return the name and the constant of each layer with weights, in the order of the calls."""
        return tuple(self._layers)

    def of_input(self, value: Tensor) -> Bound | None:
        """Return the bound of an argument of the network; None if the argument stays fixed."""
        if not is_whole(value):
            return self._near(value, Bound(1.0))
        # If all inputs are whole numbers, the operations on them give the reason.
        if not self._has_floats:
            return Bound(math.inf)
        return Bound(0.0, varies=True) if self._all_labels else None

    def judge(self, step: Step, operation: Callable[..., Any], value: Any, args: Any, kwargs: Any) -> Bound:
        """Return the bound of `value`, the result of `operation` in `step`.

        `args` and `kwargs` hold a `Traced` in place of each tensor that depends on the input.
        """
        traced = [each.bound for each in traced_in((args, kwargs))]
        if not traced:
            return Bound(0.0)
        done = Operation(value, operation, step.module, step.turns)
        varies = any(bound.varies for bound in traced)
        if any(bound.has_any_size for bound in traced) or _sizes_itself(step, args, kwargs):
            if isinstance(value, list | tuple) and has_any_number(_name(step)):
                origins = ", ".join(f"`{name}`" for name, _ in self.reasons_among(needed([step]))) or "its labels"
                msg = (
                    f"the number of results of `{_name(step)}` depends on the values of its input, as after {origins}."
                    " `register_lipschitz_rule` adds a rule for the layer"
                )
                raise TraceError(msg)
            return replace(self._of_any_size(step, done, args, kwargs), varies=varies, has_any_size=True)
        if varies and all(bound.value == 0 for bound in traced):
            return self._of_labels(step, done, args, kwargs)
        return replace(self._of_change(step, done, args, kwargs, varies=varies), varies=varies)

    def _of_any_size(self, step: Step, done: Operation, args: Any, kwargs: Any) -> Bound:
        """Return an infinite bound. The reason is the one that the rule gives, if it gives one."""
        reason = ANY_SIZE
        if step.rule is not None:
            try:
                apply_rule(step.rule, done, args, kwargs)
            except NoBoundError as error:
                reason = str(error)
        return self.refuse(step, reason)

    def _of_labels(self, step: Step, done: Operation, args: Any, kwargs: Any) -> Bound:
        """Return the bound of a value that depends on labels only: its Lipschitz constant is 0, but its size counts."""
        bound, own = Bound(0.0), None
        if step.rule is not None and isinstance(done.output, Tensor) and done.output.is_floating_point():
            with suppress(NoBoundError):
                bound, own = apply_rule(step.rule, done, args, kwargs)
        if own is not None:
            self._note_layer(step, own)
        extent = step.extent(done, bound, *args, **kwargs) if step.extent else bound.extent
        value = bound.value if math.isnan(bound.value) else 0.0
        return Bound(value, own=own, extent=extent or Extent(), varies=True)

    def _of_change(self, step: Step, done: Operation, args: Any, kwargs: Any, *, varies: bool) -> Bound:
        """Return the bound of a value that changes with the input, and perhaps with labels."""
        value = done.output
        if step.rule is None:
            is_of_whole = all(is_whole(each.value) for each in traced_in((args, kwargs)))
            reason = JUMPS if is_of_whole else f"no rule for {step.kind}; `register_lipschitz_rule` adds one"
            return self.refuse(step, reason)
        gives_whole = isinstance(value, Tensor) and is_whole(value)
        answer = step.form(done, *args, **kwargs) if step.form else None
        form, forms = (Form(), answer) if isinstance(answer, tuple) else (answer or Form(), ())
        by_form = form.lipschitz(value.numel()) if isinstance(value, Tensor) else math.inf
        try:
            bound, own = apply_rule(step.rule, done, args, kwargs)
        except NoBoundError as error:
            if math.isinf(by_form):
                reason = f"{error} (`all_labels` makes labels part of the input)" if varies else str(error)
                return replace(self.refuse(step, JUMPS if gives_whole else reason), form=form, forms=forms)
            bound, own = Bound(by_form), None
        if by_form < bound.value:
            bound = Bound(by_form)
        if gives_whole and bound.value != 0:
            return self.refuse(step, JUMPS)
        if own is not None:
            self._note_layer(step, own)
        extent = step.extent(done, bound, *args, **kwargs) if step.extent else bound.extent
        scaled = bound.scaled if self._fold else None
        bound = replace(bound, scaled=scaled, extent=extent or Extent(), form=form, forms=forms, varies=varies)
        return self._near(value, bound) if isinstance(value, Tensor) else bound

    def _near(self, value: Tensor, bound: Bound) -> Bound:
        """Return the bound with a smaller extent if the input stays near the example."""
        interval = Traced(value, bound, self.reach).interval()
        if interval is None or not value.numel():
            return bound
        low, high = interval
        entries = torch.maximum(low.abs(), high.abs())
        extent, dim = bound.extent, bound.extent.dim if value.ndim else -1
        radius = largest(torch.linalg.vector_norm(entries, dim=dim) if value.ndim else entries)
        return replace(
            bound,
            extent=replace(
                extent, entries=smaller(extent.entries, largest(entries)), radius=smaller(extent.radius, radius)
            ),
        )

    def refuse(self, step: Step, reason: str) -> Bound:
        """Record the reason, and return an infinite bound."""
        self._reasons[step] = step.name, reason
        self._note_layer(step, math.inf)
        return Bound(math.inf)

    def is_leaf(self, module: nn.Module) -> bool:
        """Return whether a module is bounded as one operation."""
        if module_rule(module) is not None:
            return True
        origin = type(module).__module__
        return "forward" not in vars(module) and origin.startswith("torch.nn") and origin not in _LOOKED_INTO

    def rule_of(self, called: nn.Module | Callable[..., Any], name: str = "") -> Rule | UserRule | None:
        """Return the rule of a module, or of a function called `name`, if there is one."""
        found: Rule | UserRule | None = (
            module_rule(called) if isinstance(called, nn.Module) else function_rule(called, name)
        )
        return found

    def extent_of(self, called: nn.Module | Callable[..., Any], name: str = "") -> Rule | None:
        """Return the rule for the extent of a result, if there is one."""
        found = module_rule(called, EXTENTS) if isinstance(called, nn.Module) else function_rule(called, name, EXTENTS)
        return None if isinstance(found, UserRule) else found

    def turns_of(self, called: nn.Module | Callable[..., Any], name: str = "") -> tuple[float, ...] | None:
        """Return where the slope of a function of each entry turns, if that is known. See `Step.turns`."""
        found: tuple[float, ...] | None = (
            module_rule(called, TURNS) if isinstance(called, nn.Module) else function_rule(called, name, TURNS)
        )
        return found

    def form_of(self, called: nn.Module | Callable[..., Any], name: str = "") -> Rule | None:
        """Return the rule for the form of a result, if there is one."""
        found: Rule | None = (
            module_rule(called, FORMS) if isinstance(called, nn.Module) else function_rule(called, name, FORMS)
        )
        return found

    def _note_layer(self, step: Step, own: float) -> None:
        """Record the constant of a layer with weights: a module, or a function of parameters."""
        if step.module is not None:
            if next(step.module.parameters(), None) is not None:
                self._layers.append((step.name, own))
        elif step.weight is not None and _is_layer(step.name.rpartition(".")[2]):
            self._layers.append((step.weight.removesuffix(".weight"), own))


def needed(steps: list[Step]) -> set[Step]:
    """Return `steps` and all steps on which they depend."""
    found: set[Step] = set()
    waiting = list(steps)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting += step.parents
    return found


def _name(step: Step) -> str:
    return step.kind.strip("`")


def _sizes_itself(step: Step, args: Any, kwargs: Any) -> bool:
    """Tell whether the values of its arguments may decide the size of a function's result. Rules cover modules."""
    is_known = step.module is not None or isinstance(step.rule, UserRule)
    return not is_known and is_sized_by_entries(_name(step), args, kwargs)


def _is_layer(name: str) -> bool:
    return name in {"linear", "matmul", "mm", "addmm", "prelu"} or "conv" in name or name.endswith("_norm")
