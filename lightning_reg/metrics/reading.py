"""The weights that a metric measures: as the forward pass uses them, read without changing anything."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_reg.functional.spectral.layers import Layer, strongest_user
from lightning_reg.functional.tensors.shards import has_dtensors, whole
from lightning_reg.functional.tensors.weights import as_weights
from lightning_reg.selection.weights import Weight, clean_name, named_weights, weight_norm_of


def layer_name(weight: Weight) -> str:
    """Return the name of a weight without a trailing `.weight`."""
    return weight.plain_name.removesuffix(".weight")


def layer_names(module: nn.Module) -> list[str]:
    """Return the names under which all modules and weights in `module` are logged, in the order of the network."""
    weights = {weight.parameter: layer_name(weight) for weight in named_weights(module)}
    names: dict[str, None] = {}  # in order, once
    for path, part in module.named_modules():
        names[clean_name(path)] = None
        names |= dict.fromkeys(weights[parameter] for parameter in part.parameters(recurse=False))
    names.pop("", None)
    return list(names)


@torch.no_grad()
def read_layers(weights: Iterable[Weight]) -> list[Layer]:
    """Return `weights` as the forward pass uses them, parametrized or pruned; parts of one tensor are one layer."""
    layers = {}
    for weight in weights:
        name = layer_name(weight)
        if name not in layers:
            tensor = _effective(weight)
            # The tensors from which a parametrization computes a weight can have any shape.
            is_alike = tensor.ndim == len(weight.shape)
            dims = weight.dims if is_alike else None
            layers[name] = Layer(name, tensor, strongest_user(weight.modules), dims, is_alike and weight.is_stack)
    return list(layers.values())


def as_layers(weights: Tensor | Iterable[Tensor] | nn.Module) -> list[Layer]:
    """Return a metric's argument as layers; a module gives every weight of two or more dimensions.

    Raises:
        TypeError: If `weights` is something else.
        ValueError: If the module has no such weight.

    """
    if isinstance(weights, nn.Module):
        floating = (weight for weight in named_weights(weights) if weight.parameter.is_floating_point())
        chosen = [weight for weight in floating if len(weight.shape) > 1]
        if not chosen:
            msg = (
                f"`weights` must be a module with a weight of two or more dimensions, got a {type(weights).__name__}"
                " without one. Pass tensors to measure other parameters."
            )
            raise ValueError(msg)
        return read_layers(chosen)
    tensors = as_weights(weights, kinds="a tensor, an iterable of tensors or a module")
    return [Layer(str(position), tensor.detach()) for position, tensor in enumerate(tensors)]


def tensors_of(layers: Sequence[Layer]) -> list[Tensor]:
    """Return the tensors of `layers`."""
    return [layer.tensor for layer in layers]


def wholes(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Return `layers` with the parts of all ranks; a collective call for sharded weights."""
    if not has_dtensors(tensors_of(layers)):
        return layers
    return [replace(layer, tensor=whole(layer.tensor)) for layer in layers]


def _effective(weight: Weight) -> Tensor:
    module, leaf = weight.modules[0], weight.plain_name.rpartition(".")[2]
    if parametrize.is_parametrized(module, leaf):
        return _evaluate(module.get_submodule(f"parametrizations.{leaf}"))
    hook = weight_norm_of(module, leaf) or _spectral_norm_of(module, leaf)
    if hook is not None:
        settings = {"do_power_iteration": False} if isinstance(hook, SpectralNorm) else {}
        computed: Tensor = hook.compute_weight(module, **settings)
        return computed
    mask = getattr(module, f"{leaf}_mask", None)
    # `module.weight` of a pruned module dates from its last forward pass, before the optimizer step.
    return weight.parameter * mask if isinstance(mask, Tensor) else weight.parameter


def _spectral_norm_of(module: nn.Module, leaf: str) -> SpectralNorm | None:
    """Return the hook with which torch's old spectral norm computes a tensor of a module."""
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm))  # noqa: SLF001
    return next((hook for hook in hooks if hook.name == leaf), None)


def _evaluate(parametrizations: nn.Module) -> Tensor:
    """Compute a parametrized weight in eval mode, because torch's spectral norm iterates when read in train mode."""
    modes = [(part, part.training) for part in parametrizations.modules()]
    parametrizations.eval()
    try:
        # Not through the attribute: `parametrize.cached()` would remember the weight without its graph.
        tensor: Tensor = parametrizations()
    finally:
        for part, training in modes:
            part.training = training
    return tensor
