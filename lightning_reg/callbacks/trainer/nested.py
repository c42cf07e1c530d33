"""Tensors in the arguments and outputs of a step: tuples, lists, dictionaries, dataclasses.

Other objects are left alone, because a tensor inside need not be an output. `functional/lipschitz/nested.py` looks into
them too, because a bound must miss no tensor.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Return `first` with each tensor replaced by `function` of it and of the corresponding tensors in `others`."""
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, Mapping):
        result = copy.copy(first)  # not a dict: the outputs of Hugging Face models also have attributes
        for key in first:
            result[key] = map_tensors(function, first[key], *(other[key] for other in others))  # type: ignore[index]
        return result
    if isinstance(first, (tuple, list)):
        items = [map_tensors(function, *parts) for parts in zip(first, *others, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = [field.name for field in dataclasses.fields(first) if field.init]
        changes = {
            name: map_tensors(function, getattr(first, name), *(getattr(other, name) for other in others))
            for name in fields
        }
        return dataclasses.replace(first, **changes)
    return first


def tensors_in(nested: Any) -> Iterator[Tensor]:
    """Yield all tensors in `nested`, in order; nothing is copied."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from tensors_in(value)
    elif isinstance(nested, (tuple, list)):
        for value in nested:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(nested) and not isinstance(nested, type):
        for field in dataclasses.fields(nested):
            yield from tensors_in(getattr(nested, field.name))
