"""A module's stand-in: the same computation in eval mode. Calling or tracing it does not change the module.

The weights of the stand-in are plain parameters, as `forward` uses them: parametrizations and pruning are applied, and
shards are gathered. They share memory with the module's parameters unless they had to be computed. Buffers are copies,
and so are other tensors and containers that the module has as attributes.
Wrappers (`torch.compile`, activation checkpointing, DDP) and hooks are removed.
"""

import copy
from collections import OrderedDict, defaultdict, deque
from enum import Enum
from functools import partial
from types import FunctionType, MethodType, NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from typing_extensions import override

from lightning_reg.functional.lipschitz.nested import replaced
from lightning_reg.functional.tensors.shards import whole

_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# These are set after all others.
_PARTS = {*_HOOKS, "_parameters", "_buffers", "_modules", "_compiled_call_impl"}
_CONTAINERS = {list, dict, OrderedDict, defaultdict, set, deque}


class Opaque(nn.Module):
    """A stand-in for a module that Python cannot inspect."""

    @override
    def forward(self, *_: Any, **__: Any) -> Any:
        msg = "a TorchScript module hides its operations"
        raise TypeError(msg)


@torch.no_grad()
def stand_in(module: nn.Module) -> nn.Module:
    """Return the stand-in of `module`. With sharded weights, this is a collective call."""
    return _Copies().module(module)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the user's module without wrappers that compute the same."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
            continue
        parts = vars(module)["_modules"]
        inner = next((parts[name] for name in _WRAPPED if isinstance(parts.get(name), nn.Module)), None)
        if inner is None:
            return module
        module = inner


class _Copies:
    """The stand-ins of modules and parameters, and copies of other values. Each has exactly one, for all uses."""

    def __init__(self) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._copies: dict[int, Any] = {}

    def module(self, module: nn.Module) -> nn.Module:
        module = unwrapped(module)
        if id(module) not in self._modules:
            self._modules[id(module)] = Opaque() if isinstance(module, torch.jit.ScriptModule) else self._copy(module)
        return self._modules[id(module)]

    def _copy(self, module: nn.Module) -> nn.Module:
        # `copy.copy` does not work here: parametrized modules refuse it, and a class may redefine it.
        new = object.__new__(_plain_type(module))
        self._modules[id(module)] = new
        state = vars(new)
        state.update(vars(module))
        state.pop("_compiled_call_impl", None)
        state.update({name: self._own(value) for name, value in vars(module).items() if name not in _PARTS})
        state["_parameters"] = {name: self._parameter(p) for name, p in vars(module)["_parameters"].items()}
        state["_buffers"] = {
            name: None if buffer is None else _wide(whole(buffer)).clone()
            for name, buffer in vars(module)["_buffers"].items()
        }
        parts = {name: None if part is None else self.module(part) for name, part in vars(module)["_modules"].items()}
        if parametrize.is_parametrized(module):
            for name, parametrization in cast("nn.Module", parts.pop("parametrizations")).named_children():
                state["_parameters"][name] = _constant(parametrization())
        state["_modules"] = parts
        state.update({name: OrderedDict() for name in _HOOKS}, training=False)
        self._replay_hooks(module, new)
        if isinstance(module, nn.RNNBase):
            self._set_flat_weights(module, new)
        return new

    def _own(self, value: Any) -> Any:
        """Return the stand-in's version of an attribute, which `forward` may change."""
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, nn.Parameter):
            return self._parameter(value)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self.module(value.__self__))
        if type(value) is partial:
            return partial(self._own(value.func), *map(self._own, value.args), **self._own(value.keywords))
        if type(value) is tuple:
            return tuple(map(self._own, value))
        if isinstance(value, Tensor) or type(value) in _CONTAINERS or _is_record(value):
            return self._copies[id(value)] if id(value) in self._copies else self._copied(value)
        return value

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            new: Any = _wide(whole(value)).detach().clone()
        elif type(value) in _CONTAINERS:
            new = copy.copy(value)
            new.clear()
        else:
            new = object.__new__(type(value))
        self._copies[id(value)] = new
        if isinstance(value, dict):
            new.update({key: self._own(part) for key, part in value.items()})
        elif type(value) in _CONTAINERS:
            (new.update if isinstance(value, set) else new.extend)(map(self._own, value))
        elif not isinstance(value, Tensor):
            vars(new).update(self._own(vars(value)))
        return new

    def _set_flat_weights(self, module: nn.RNNBase, new: nn.Module) -> None:
        """Set the list of weights that `forward` of a recurrent layer uses instead of its attributes."""
        hooked = {name: vars(new)["_parameters"].get(name) for name in _hooked_names(module)}
        vars(new)["_flat_weights"] = [
            hooked[name] if hooked.get(name) is not None else self._parameter(weight)
            for name, weight in zip(module._flat_weights_names, module._flat_weights, strict=True)  # noqa: SLF001  # have no public name
        ]

    def _parameter(self, parameter: Tensor | None) -> Tensor | None:
        if parameter is None or isinstance(parameter, nn.parameter.UninitializedParameter):
            return parameter
        if id(parameter) not in self._parameters:
            self._parameters[id(parameter)] = _constant(_wide(whole(parameter)))
        return self._parameters[id(parameter)]

    def _replay_hooks(self, module: nn.Module, new: nn.Module) -> None:
        """Set the weights that hooks of torch's older pruning and normalization compute before each forward pass."""
        for hook in vars(module)["_forward_pre_hooks"].values():
            if isinstance(hook, BasePruningMethod):
                name, weight = hook._tensor_name, hook.apply_mask(new)  # type: ignore[no-untyped-call]  # noqa: SLF001  # has no public name
            elif isinstance(hook, WeightNorm):
                name, weight = hook.name, hook.compute_weight(new)
            elif isinstance(hook, SpectralNorm):
                name, weight = hook.name, hook.compute_weight(new, do_power_iteration=False)
            else:
                continue
            vars(new).pop(name, None)
            vars(new)["_parameters"][name] = _constant(weight)


def _is_record(value: Any) -> bool:
    """Return whether a user's object only keeps tensors, containers and plain values, such as a cache."""
    if isinstance(value, Enum | FunctionType | type) or getattr(type(value), "__new__", None) is not object.__new__:
        return False
    parts = list(getattr(value, "__dict__", {}).values())
    is_kept = [isinstance(part, Tensor) or type(part) in _CONTAINERS for part in parts]
    return any(is_kept) and all(
        kept or isinstance(part, bool | int | float | str | NoneType) for kept, part in zip(is_kept, parts, strict=True)
    )


def _hooked_names(module: nn.Module) -> list[str]:
    """Return the names of weights that a hook computes before each forward pass."""
    hooks = vars(module)["_forward_pre_hooks"].values()
    return [
        hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name  # noqa: SLF001  # has no public name
        for hook in hooks
        if isinstance(hook, BasePruningMethod | WeightNorm | SpectralNorm)
    ]


def _plain_type(module: nn.Module) -> type[nn.Module]:
    """Return the user's class, without the class that a parametrization derives from it."""
    if not parametrize.is_parametrized(module):
        return type(module)
    names = dict(module.get_submodule("parametrizations").named_children())
    return next(
        ancestor
        for ancestor in type(module).__mro__
        if issubclass(ancestor, nn.Module)
        and not any(isinstance(getattr(ancestor, name, None), property) for name in names)
    )


def _constant(tensor: Tensor) -> nn.Parameter:
    # The version counter shows changes in place. Tensors made in inference mode have none.
    tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
    return nn.Parameter(tensor, requires_grad=False)


def _wide(tensor: Tensor) -> Tensor:
    """Return `tensor`, converted to float32 if it is in half precision."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize else tensor


def widened(value: Any) -> Any:
    """Return a copy whose tensors are at least float32 and have no graph. They are not inference tensors.

    Tensors of a subclass that only adds attributes, such as the images of torchvision, become plain tensors.
    """
    return replaced(value, Tensor, lambda tensor: _plain(_wide(tensor).detach()).clone())


def _plain(tensor: Tensor) -> Tensor:
    is_stored = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return tensor.as_subclass(Tensor) if is_stored and type(tensor) is not Tensor else tensor
