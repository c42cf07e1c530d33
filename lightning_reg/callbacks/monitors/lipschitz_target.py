"""The function whose Lipschitz constant a monitor bounds, and the samples for its lower bound."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.trainer.nested import tensors_in
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, has_forward
from lightning_reg.functional.lipschitz.nested import found, replaced
from lightning_reg.selection.weights import clean_name

InputTransform = Callable[[Any], Any]
_REMEDY = "Pass `target=`, the name of a part of it that is a function of one tensor"


@dataclass(frozen=True)
class Target:
    """The module to bound, as a function of samples."""

    name: str
    """The name that the user passed. It is empty for the LightningModule itself."""
    module: nn.Module

    def layer(self, name: str) -> str:
        """Return a layer's name in the LightningModule, given its name in a report on the target."""
        # If the target is a single layer, the report uses the name of its class.
        is_inside = hasattr(self.module, name.partition(".")[0])
        return ".".join(filter(None, (self.name, clean_name(name) if is_inside else ""))) or name

    def samples(self, batch: Any, count: int | None, transform: InputTransform | None) -> Tensor | tuple[Any, ...]:
        """Return the target's input for the first `count` samples of a batch, in the precision of the target.

        The input is a tensor, or the tuple of the arguments of `forward` if `transform` returns several.

        Raises:
            TypeError: If `transform` does not return floating-point tensors with one row for each sample.
            MisconfigurationException: If there is no `transform`, and the batch has no floating-point tensor.

        """
        if transform is None:
            inputs = next(filter(_has_samples, tensors_in(batch)), None)
            if inputs is None:
                msg = (
                    f"LipschitzMonitor finds no floating-point tensor in the batch, which is a"
                    f" {type(batch).__name__}. Pass `input_transform`, a function from the batch to the target's input."
                )
                raise MisconfigurationException(msg)
        else:
            inputs = _checked(transform(batch))

        def taken(tensor: Tensor) -> Tensor:
            # A copy does not keep the rest of the batch in memory.
            rows = tensor[:count].detach()
            return rows.to(_precision(self.module, tensor) if tensor.is_floating_point() else tensor.dtype, copy=True)

        return replaced(inputs, Tensor, taken)  # type: ignore[no-any-return]  # of the same kind


class OfOneTensor(nn.Module):
    """A module as a function of one matrix: all floating-point numbers among its arguments, one row for each sample.

    Whole numbers stay fixed.

    Args:
        module: The module to call.
        arguments: The arguments of its `forward`.

    """

    def __init__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.module, self.arguments = module, arguments
        self._tensors = [tensor for tensor in found(arguments, Tensor) if tensor.is_floating_point()]

    def rows(self) -> Tensor:
        """Return the matrix at the given arguments, shape (samples, numbers)."""
        return torch.cat([tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in self._tensors], 1)

    @override
    def forward(self, rows: Tensor) -> Tensor:
        sizes = [tensor[0].numel() for tensor in self._tensors]
        parts = (
            part.reshape(len(rows), *tensor.shape[1:]).to(tensor.dtype)
            for part, tensor in zip(torch.split(rows, sizes, 1), self._tensors, strict=True)
        )
        taken = iter(list(parts))
        change = lambda tensor: next(taken) if tensor.is_floating_point() else tensor.clone()  # noqa: E731
        output = self.module(*replaced(self.arguments, Tensor, change))
        tensors = [output] if isinstance(output, Tensor) else list(found(output, Tensor))
        return torch.cat([tensor.reshape(len(rows), -1) for tensor in tensors], 1)


def find_target(pl_module: LightningModule, name: str | None, *, has_transform: bool) -> Target:
    """Return the module of that name without its wrappers. `None` stands for the LightningModule.

    Args:
        pl_module: The LightningModule that trains.
        name: The name that the user passed.
        has_transform: Whether a function of the user may return several arguments of `forward`.

    Raises:
        ValueError: If no module has that name.
        MisconfigurationException: If the module has no `forward`, or if it needs several arguments without a
            transform.

    """
    # A wrapper has the same clean name as the wrapped module. It comes first, so the wrapped module replaces it.
    modules = {clean_name(path): module for path, module in pl_module.named_modules(remove_duplicate=False)}
    if name is not None and name not in modules:
        nearest = _checks.nearest(name, filter(None, modules))
        msg = f"`target` {name!r} is not a module of {type(pl_module).__name__}. Nearest names: {nearest}."
        raise ValueError(msg)
    module = pl_module if name is None else modules[name]
    _refuse_other_signatures(module, [child for child, _ in pl_module.named_children()], several=has_transform)
    return Target(name or "", module)


def _refuse_other_signatures(module: nn.Module, names: list[str], *, several: bool) -> None:
    title = type(module).__name__
    if not has_forward(module):
        msg = (
            f"LipschitzMonitor needs a function to bound, but {title} has no `forward`. {_REMEDY}, e.g. one of {names}."
        )
        raise MisconfigurationException(msg)
    with suppress(ValueError):  # a builtin has no signature
        needed = [
            parameter.name
            for parameter in inspect.signature(type(module).forward).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        ][1:]
        if len(needed) > 1 and not several:
            msg = (
                f"LipschitzMonitor needs a function of one tensor, but {title}.forward takes {needed}. {_REMEDY}, or"
                " pass `input_transform`, a function from the batch to a tuple of all arguments."
            )
            raise MisconfigurationException(msg)


def _checked(inputs: object) -> Any:
    """Return the result of `input_transform`. Raise if a Jacobian with respect to it does not exist."""
    if isinstance(inputs, Tensor) and _has_samples(inputs):
        return inputs
    if isinstance(inputs, tuple | list | dict):
        tensors = list(found(inputs, Tensor))
        if any(map(_has_samples, tensors)) and len({tensor.shape[:1] for tensor in tensors}) == 1:
            return (inputs,) if isinstance(inputs, dict) else tuple(inputs)
    kind = f"a tensor of {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
    msg = (
        f"`input_transform` must return a floating-point tensor of shape (batch, ...), or a tuple or dict with such"
        f" tensors, in which every tensor has one row for each sample, got {kind}."
    )
    raise TypeError(msg)


def _has_samples(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0


def _precision(module: nn.Module, inputs: Tensor) -> torch.dtype:
    """Return the dtype for the module's input: the dtype of its parameters. Without any, it is at least float32."""
    own = (tensor.dtype for tensor in chain(module.parameters(), module.buffers()) if tensor.is_floating_point())
    return next(own, torch.promote_types(inputs.dtype, torch.float32))
