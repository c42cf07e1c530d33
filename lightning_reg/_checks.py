"""Argument checks: return the checked value, or raise with the name, the rule, the value and the remedy."""

import math
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeGuard


def number(name: str, value: object) -> float:
    """Return `value` as a finite float.

    Raises:
        TypeError: If `value` is not a real number. Bools and strings are refused, and so are tensors: reading one would
            synchronise with the device at every step.
        ValueError: If `value` is NaN or infinite.

    """
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"`{name}` must be a number, got {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    try:
        checked = float(value)
    except OverflowError:
        msg = f"`{name}` must be a finite number, got one that is too large for a float."
        raise ValueError(msg) from None
    if not math.isfinite(checked):
        msg = f"`{name}` must be a finite number, got {value}."
        raise ValueError(msg)
    return checked


def non_negative(name: str, value: object) -> float:
    """Return `value` as a finite float that is at least 0."""
    checked = number(name, value)
    if checked < 0:
        msg = f"`{name}` must be a finite number >= 0, got {value}."
        raise ValueError(msg)
    return checked


def positive(name: str, value: object) -> float:
    """Return `value` as a finite float that is above 0."""
    checked = number(name, value)
    if checked <= 0:
        msg = f"`{name}` must be a finite number > 0, got {value}."
        raise ValueError(msg)
    return checked


def in_range(name: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float in [`low`, `high`]."""
    checked = number(name, value)
    if not low <= checked <= high:
        msg = f"`{name}` must be in [{low:g}, {high:g}], got {value}."
        raise ValueError(msg)
    return checked


def between(name: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float in (`low`, `high`), without the ends."""
    checked = number(name, value)
    if not low < checked < high:
        msg = f"`{name}` must be in ({low:g}, {high:g}), excluding {low:g} and {high:g}, got {value}."
        raise ValueError(msg)
    return checked


# The largest int64, torch's widest integer.
LARGEST_COUNT = 2**63 - 1


def count(name: str, value: object, low: int) -> int:
    """Return `value` if it is an int of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"`{name}` must be an int >= {low}, got {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    if value < low:
        msg = f"`{name}` must be an int >= {low}, got {value}."
        raise ValueError(msg)
    if value > LARGEST_COUNT:
        msg = f"`{name}` must be an int below 2**63, got a larger one."
        raise ValueError(msg)
    return value


def integer(name: str, value: object) -> int:
    """Return `value` if it is an int."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"`{name}` must be an int, got {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    return value


def one_of(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str):
        msg = f"`{name}` must be a string, got {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    if value not in choices:
        msg = f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}."
        raise ValueError(msg)
    return value


def dimension(name: str, value: object) -> int | None:
    """Return `value` if it is an int, or `None` for no dimension."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        msg = f"`{name}` must be an int or None, got {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    return value


def boolean(name: str, value: object) -> bool:
    """Return `value` if it is `True` or `False`."""
    if not isinstance(value, bool):
        msg = f"`{name}` must be True or False, got {value!r}."
        raise TypeError(msg)
    return value


def function(name: str, value: object, form: str) -> Callable[..., Any]:
    """Return `value` if it is callable; messages describe it as `form`, such as "a function of a batch"."""
    if not callable(value):
        msg = f"`{name}` must be {form}, got {value!r}."
        raise TypeError(msg)
    return value


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Tell whether `value` is a list, a tuple or another sequence, except text and bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the `names` most similar to `name`, joined for a message; "none" if there are no names."""
    return ", ".join(get_close_matches(name, list(names), n=3, cutoff=0.0)) or "none"
