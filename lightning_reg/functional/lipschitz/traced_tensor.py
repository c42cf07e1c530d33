"""A tensor with a bound of how much it changes with the network's input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override


class TraceError(Exception):
    """Says why a module cannot be followed."""


class TracedTensor(Tensor):
    """A tensor without entries while a module is followed: reading entries would make the path depend on the input.

    `isinstance` treats it as a tensor, and it has the sizes of one. All other operations must pass through the mode of
    the tracer; code that bypasses it, such as compiled code, is refused.

    Args:
        value: The tensor at the example input.
        state: Its bound and its step.

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
        return _refused(func)

    @classmethod
    @override
    def __torch_dispatch__(  # type: ignore[override]  # torch declares no method
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse operations that bypass the tracer."""
        return _refused(func)


def _refused(func: Callable[..., Any]) -> Any:
    msg = f"`{getattr(func, '__name__', func)}` is called where Python cannot look, as in TorchScript or `vmap`"
    raise TraceError(msg)


def called_name(func: Callable[..., Any]) -> str:
    """Return the name of a function, method or attribute of torch, such as `mul` for `Tensor.__mul__`."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name.strip("_") if name.startswith("__") else name


def is_reflected(func: Callable[..., Any]) -> bool:
    """Tell whether a function is the reflected operator of its right operand, as called by `1 - x`."""
    return getattr(func, "__name__", "") in {f"__r{name}__" for name in _REFLECTED}


_REFLECTED = ("add", "sub", "mul", "div", "truediv", "floordiv", "pow", "mod", "matmul")


def is_method(func: Callable[..., Any]) -> bool:
    """Tell whether a function is a method of tensors, or reads an attribute of them."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return True
    if isinstance(func, torch._ops.OpOverloadPacket):  # noqa: SLF001  # has no public name
        return str(func).startswith("aten.")
    return any(getattr(Tensor, each, None) is func for each in (name, f"__{name}__"))
