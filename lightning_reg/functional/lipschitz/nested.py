"""Find and replace tensors in a user's containers: tuples, dictionaries, dataclasses, objects with attributes."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

LeafT = TypeVar("LeafT")

_PLAIN = (
    *(type(None), type(...), bool, int, float, complex, str, bytes, range, type, Enum, BuiltinFunctionType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, ModuleType),
)
_CLOSED = (nn.Module, FunctionType, MethodType, partial, torch.Generator, torch.jit.ScriptFunction, Iterator)


def found(value: Any, kind: type[LeafT]) -> Iterator[LeafT]:
    """Yield all objects of a type in `value`, in a fixed order. An object at two places is yielded twice."""
    yield from (each for each in _leaves(value, kind, set()) if isinstance(each, kind))


def closed_in(value: Any) -> Iterator[Any]:
    """Yield objects that may hide tensors, such as a function with a closure."""
    return (each for each in _leaves(value, Tensor, set()) if not isinstance(each, (Tensor, *_PLAIN)))


def replaced(value: Any, kind: type[LeafT], change: Callable[[LeafT], Any]) -> Any:
    """Return a copy of `value` in which all objects of a type are changed, or `value` itself if it has none."""
    return _replaced(value, kind, change, {})


def kind_of(arguments: Any) -> tuple[Any, ...]:
    """Return what a bound at these arguments depends on, apart from whole numbers in tensors.

    These are the dtype and the size of each tensor, without the number of samples, and all plain numbers and strings.
    """
    tensors = ((tensor.dtype, tensor.shape[1:]) for tensor in found(arguments, Tensor))
    return (*tensors, *(each for kind in (int, float, str) for each in found(arguments, kind)))


def _leaves(value: Any, kind: type, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, (kind, *_PLAIN)):
        yield value
        return
    parts = _parts(value)
    if parts is None:
        yield value
    elif id(value) not in seen:
        for part in parts.values():
            yield from _leaves(part, kind, seen | {id(value)})


def _parts(value: Any) -> dict[Any, Any] | None:
    """Return the contents of a container or an object, by place; None if they are not accessible."""
    if isinstance(value, (Tensor, *_CLOSED)):
        return None
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple | set | frozenset | deque):
        return dict(enumerate(value))
    if isinstance(value, slice):
        return {"start": value.start, "stop": value.stop, "step": value.step}
    names = [name for ancestor in type(value).__mro__ for name in _slots(ancestor)]
    slots = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return {**slots, **vars(value)} if hasattr(value, "__dict__") else slots or None


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in {"__dict__", "__weakref__"})


def _replaced(value: Any, kind: type, change: Callable[[Any], Any], seen: dict[int, Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, _PLAIN) or (parts := _parts(value)) is None or id(value) in seen:
        return seen.get(id(value), value)
    seen[id(value)] = value
    new = {place: _replaced(part, kind, change, seen) for place, part in parts.items()}
    if any(new[place] is not part for place, part in parts.items()):
        seen[id(value)] = _rebuilt(value, new)
    return seen[id(value)]


def _rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(value, slice):
        return slice(*parts.values())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*parts.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return type(value)(parts.values())
    new = copy.copy(value)
    for place, part in parts.items():
        if isinstance(value, dict):
            new[place] = part
        else:
            object.__setattr__(new, place, part)  # a frozen dataclass refuses `setattr`
    return new
