"""The walk over a module's graph: the bound of its output, of each layer, and what has none."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_reg.functional.lipschitz.judge import JUMPS, Judge
from lightning_reg.functional.lipschitz.rules.applied import RuleError
from lightning_reg.functional.lipschitz.rules.registry import own_functions
from lightning_reg.functional.lipschitz.stand_in import stand_in
from lightning_reg.functional.lipschitz.tracer import Root, Tracer
from lightning_reg.functional.lipschitz.untraced import layers_alone
from lightning_reg.functional.lipschitz.value import together
from lightning_reg.functional.tensors.random import devices_of, watched_generators


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
    root = Root(stand_in(module))
    has_floats = any(map(_has_floats, inputs))
    judge = Judge(root, has_floats=has_floats, fold=fold)
    tracer = Tracer(judge, own_functions(), inputs)
    arguments = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
    try:
        with watched_generators(devices_of(inputs)) as has_drawn:
            tracer.trace(root)
            drawn = has_drawn()
    except RuleError as error:
        raise error.__cause__ or error from None
    except Exception as error:  # whatever a user's module does
        layers = layers_alone(stand_in(module), arguments)
        return Findings(math.inf, layers, (("trace", f"{type(error).__name__}: {error}"),))
    if drawn:
        return Findings(math.inf, judge.per_layer(), (("forward", "it draws random numbers"),))
    if not _computes(module, arguments, tracer.output()):
        reason = "the traced graph computes something else than `forward`: it may ask whether its input is a Tensor"
        return Findings(math.inf, judge.per_layer(), (("trace", reason),))
    bounds, needed = tracer.bound_of_output()
    value = together(bound.value for bound in bounds)
    reasons = judge.reasons_among(needed)
    if math.isinf(value) and not (reasons or has_floats):
        reasons = (("input", JUMPS),)
    return Findings(value, judge.per_layer(), reasons)


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


def _has_floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
