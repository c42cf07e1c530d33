"""The walk over a module's operations. It finds the bound of the output, and the operations without a bound."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.judge import JUMPS, Judge
from lightning_reg.functional.lipschitz.nested import found, replaced
from lightning_reg.functional.lipschitz.rules.applied import RuleError
from lightning_reg.functional.lipschitz.rules.registry import own_functions
from lightning_reg.functional.lipschitz.stand_in import stand_in
from lightning_reg.functional.lipschitz.tracer import Tracer, WrittenError
from lightning_reg.functional.lipschitz.untraced import layers_alone
from lightning_reg.functional.lipschitz.value import Bound, larger, together
from lightning_reg.functional.tensors.random import devices_of, watched_generators

TOO_LARGE = "the product of the bounds of all operations is too large for a number"


class Findings(NamedTuple):
    """The bound of the module, the bound of each layer, and the operations without a bound."""

    value: float
    layers: tuple[tuple[str, float], ...]
    """The name and the constant of each layer with weights, in the order of the calls."""
    unbounded: tuple[tuple[str, str], ...]
    last: tuple[Tensor, Bound] | None = None
    """For an output that is a product with a matrix: the matrix, and the bound before the product."""

    @property
    def per_layer(self) -> dict[str, float]:
        """The constant of each layer with weights. A layer with inputs of several sizes has the largest."""
        largest: dict[str, float] = {}
        for name, own in self.layers:
            largest[name] = larger(own, largest.get(name, 0.0))
        return largest


def walk(
    module: nn.Module, inputs: Sequence[Any], *, fold: bool, reach: float = math.inf, all_labels: bool = False
) -> Findings:
    """Return the findings for `module` at `inputs`.

    Args:
        module: The module, which does not change.
        inputs: The arguments of the module, which may change their tensors in place.
        fold: Whether to fold batch normalization into the layer before it.
        reach: The largest distance of other inputs from `inputs`.
        all_labels: Whether the bounds must hold for any whole numbers in place of those in `inputs`.

    """
    tensors = list(found(inputs, Tensor))
    has_floats = any(map(_has_floats, tensors))
    devices = devices_of(tensors)
    arguments = replaced(list(inputs), Tensor, Tensor.clone)
    try:
        with watched_generators(devices) as has_drawn:
            judge = Judge(has_floats=has_floats, fold=fold, reach=reach, all_labels=all_labels)
            try:
                output = Tracer(judge, own_functions(), devices).trace(stand_in(module), inputs)
            except WrittenError:
                judge = Judge(has_floats=has_floats, fold=fold, reach=reach, all_labels=all_labels)
                tracer = Tracer(judge, own_functions(), devices, follows_new=True)
                output = tracer.trace(stand_in(module), replaced(arguments, Tensor, Tensor.clone))
            drawn = has_drawn()
    except RuleError as error:
        raise error.__cause__ or error from None
    except Exception as error:  # a user's module can raise anything
        layers = layers_alone(stand_in(module), arguments)
        return Findings(math.inf, layers, (("trace", f"{type(error).__name__}: {error}"),))
    if drawn:
        return Findings(math.inf, judge.layers(), (("forward", "it draws random numbers"),))
    if not _computes(module, arguments, output.value):
        reason = "`forward` returned another result during the trace; it may test the type of its input"
        return Findings(math.inf, judge.layers(), (("trace", reason),))
    value = together(bound.value for bound in output.bounds)
    last = output.bounds[0].last if isinstance(output.value, Tensor) and output.bounds else None
    # If the value is finite, a factor of 0 has removed every operation without a bound.
    reasons = () if math.isfinite(value) else judge.reasons_among(output.steps)
    if math.isinf(value) and not reasons:
        reasons = (("output", TOO_LARGE) if has_floats else ("input", JUMPS),)
    return Findings(value, judge.layers(), reasons, last)


def _computes(module: nn.Module, arguments: Sequence[Any], traced: Any) -> bool:
    """Return whether `module` computes `traced`. If it draws random numbers, it is not compared."""
    with watched_generators(devices_of(list(found(arguments, Tensor)))) as has_drawn:
        output = stand_in(module)(*arguments)
        if has_drawn():
            return True
    tensors, expected = list(found(traced, Tensor)), list(found(output, Tensor))
    return len(tensors) == len(expected) and all(
        first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)
        for first, second in zip(tensors, expected, strict=True)
    )


def _has_floats(value: Tensor) -> bool:
    return value.is_floating_point()
