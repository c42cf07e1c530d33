"""How expansive a network is, at most: a certified upper bound of its Lipschitz constant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg import _checks
from lightning_reg.functional._lipschitz_rules import UserRule, register
from lightning_reg.functional._lipschitz_walk import walk
from lightning_reg.functional._singular import without_autocast
from lightning_reg.functional._stand_in import widened


@dataclass(frozen=True)
class LipschitzReport:
    """What `lipschitz_bound` found.

    Attributes:
        value: The upper bound; infinity if there is none, NaN if a weight is not finite.
        per_layer: For each layer with weights, by name, the constant of that layer alone.
        unbounded: What makes the bound infinite: the name of each such layer or operation, and why.

    Example:
        >>> LipschitzReport(2.0, {"0": 2.0}).unbounded
        ()

    """

    value: float
    per_layer: dict[str, float] = field(default_factory=dict)
    unbounded: tuple[tuple[str, str], ...] = ()


def lipschitz_bound(
    module: nn.Module, example_input: Tensor | Sequence[Any], *, fold_batch_norm: bool = True
) -> LipschitzReport:
    r"""Return an upper bound of a module's Lipschitz constant, :math:`\max_{x, y} \|f(x) - f(y)\|_2 / \|x - y\|_2`."""
    if not isinstance(module, nn.Module):
        msg = f"`module` must be a torch.nn.Module, got {module!r} of type {type(module).__name__}."
        raise TypeError(msg)
    _checks.boolean("fold_batch_norm", fold_batch_norm)
    inputs = _as_inputs(example_input)
    device = next((value.device for value in inputs if isinstance(value, Tensor)), torch.device("cpu"))
    with torch.inference_mode(False), torch.no_grad(), without_autocast(device):  # noqa: FBT003  # torch's
        return LipschitzReport(*walk(module, [widened(value) for value in inputs], fold=fold_batch_norm))


def register_lipschitz_rule(target: type[nn.Module] | Callable[..., Any], rule: Callable[..., Any]) -> None:
    """Teach `lipschitz_bound` the Lipschitz constant of a layer or function that it does not know."""
    is_module = isinstance(target, type) and issubclass(target, nn.Module)
    if (isinstance(target, type) and not is_module) or not callable(target):
        msg = f"`target` must be a subclass of torch.nn.Module or a function, got {target!r}."
        raise TypeError(msg)
    if not callable(rule):
        msg = f"`rule` must be callable as rule(module, *inputs) or, for a function, rule(*inputs), got {rule!r}."
        raise TypeError(msg)
    register(target, UserRule(rule))


def _as_inputs(example_input: Any) -> tuple[Any, ...]:
    inputs = (example_input,) if isinstance(example_input, Tensor) else example_input
    if not isinstance(inputs, tuple | list) or not any(isinstance(value, Tensor) for value in inputs):
        kind = type(example_input).__name__
        msg = f"`example_input` must be a tensor or a tuple of the inputs of `forward`, got a {kind}."
        raise TypeError(msg)
    return tuple(inputs)
