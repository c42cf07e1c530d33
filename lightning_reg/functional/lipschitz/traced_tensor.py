"""A tensor that carries the bound of how much it changes with the network's input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.lipschitz.nested import found


class TraceError(Exception):
    """The reason why the operations of a module cannot be followed."""


class TracedTensor(Tensor):
    """A tensor without entries that stands for a value of the network during a trace.

    It has no entries, because code that reads entries could take another path for another input. It has the sizes of
    the value, and `isinstance` treats it as a tensor. All other operations must pass through the mode of the tracer.
    Operations that bypass the mode, such as compiled code, raise an error.

    Args:
        value: The tensor at the example input.
        state: The bound of the tensor and the step that computed it.

    """

    state: Any

    @staticmethod
    @override
    def __new__(cls: type, value: Tensor, state: Any) -> "TracedTensor":
        new: TracedTensor = Tensor._make_wrapper_subclass(  # noqa: SLF001  # has no public name
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            layout=value.layout,
            device=value.device,
        )
        new.state = state
        return new

    @classmethod
    @override
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _refused(func, args, kwargs)

    @classmethod
    @override
    def __torch_dispatch__(  # type: ignore[override]  # torch declares no method
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse operations that bypass the tracer."""
        return _refused(func, args, kwargs)


def _refused(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    name = getattr(func, "__name__", func)
    error = TraceError(
        f"`{name}` is called by code that hides its operations from Python, such as TorchScript or `vmap`"
    )
    for tensor in found((args, kwargs), TracedTensor):
        tensor.state.errors.append(error)
    raise error


def has_own_operations(tensor: Tensor) -> bool:
    """Return whether the class of a tensor defines what operations on it compute."""
    kind = type(tensor)
    function = getattr(kind.__torch_function__, "__func__", kind.__torch_function__)
    is_plain = function in (_PLAIN_FUNCTION, torch._C._disabled_torch_function_impl)  # noqa: SLF001  # has no public name
    return not is_plain or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


_PLAIN_FUNCTION = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]  # a class method


def called_name(func: Callable[..., Any]) -> str:
    """Return the name of a function, method or attribute of torch, such as `mul` for `Tensor.__mul__`."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name.strip("_") if name.startswith("__") else name


def is_reflected(func: Callable[..., Any]) -> bool:
    """Return whether a function is the reflected operator of its right operand, as called by `1 - x`."""
    return getattr(func, "__name__", "") in {f"__r{name}__" for name in _REFLECTED}


_REFLECTED = ("add", "sub", "mul", "div", "truediv", "floordiv", "pow", "mod", "matmul")


def is_method(func: Callable[..., Any]) -> bool:
    """Return whether a function is a method of tensors or reads an attribute of a tensor."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return True
    if isinstance(func, torch._ops.OpOverloadPacket):  # noqa: SLF001  # has no public name
        return str(func).startswith("aten.")
    return any(getattr(Tensor, each, None) is func for each in (name, f"__{name}__"))
