"""What a user writes to choose weights or modules: globs over names, types and a number of dimensions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_reg import _checks

# Sequences by their type; an empty one would pass for an empty list.
_NO_LIST = (str, bytes, bytearray, memoryview, range)


@dataclass(frozen=True)
class Select:
    """A choice of weights by name, by the type of their module and by their number of dimensions.

    Patterns are globs over full parameter names (`*` matches dots too): `"encoder.*"`, `"*.attention.*.weight"`.
    Biases and the scales of most norm layers have one dimension, so the default `min_ndim` leaves them out. A tied
    weight has several names and counts once: it is chosen if one of its names is, and excluded if one of its names is.
    The two parts of a weight under `weight_norm` are two weights, `<name>.original0` and `<name>.original1`, and both
    answer to `<name>`, too. What sits in no layer (class tokens, position tables, layer scales; the plan marks it) is a
    weight as others are: `Select(module_types=[nn.Linear])` and `Select("*.weight")` leave it out.

    Args:
        include: Glob or globs; a weight must match one.
        exclude: Glob or globs; a weight must match none.
        module_types: If given, only weights that sit directly in a module of one of these types.
        min_ndim: Fewest dimensions of a weight, >= 0.

    Raises:
        TypeError: If an argument is of the wrong kind: a pattern is no string, or a module type no type.
        ValueError: If `include` is empty or `min_ndim` negative.

    Example:
        >>> Select(exclude="head.*")
        Select(include=('*',), exclude=('head.*',), module_types=(), min_ndim=2)

    """

    include: str | Sequence[str] = ("*",)
    exclude: str | Sequence[str] = ()
    module_types: Sequence[type[nn.Module]] = ()
    min_ndim: int = 2

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("include", "exclude"):
            globs = _listed(name, getattr(self, name), _is_glob, "be a glob or a list of globs over parameter names")
            object.__setattr__(self, name, globs)
        types = _listed("module_types", self.module_types, _is_type, "hold subclasses of torch.nn.Module")
        object.__setattr__(self, "module_types", types)
        if not self.include:
            msg = "`include` must hold at least one glob, got none. Leave it out to include every weight."
            raise ValueError(msg)
        _checks.count("min_ndim", self.min_ndim, low=0)


Selector = str | Sequence[str] | Select | None


def as_select(select: Selector) -> Select:
    """Return what a user passed as `select` as a `Select`; `None` is the default choice."""
    if select is None:
        return Select()
    return select if isinstance(select, Select) else Select(include=select)


def _is_glob(item: object) -> bool:
    return isinstance(item, str)


def _is_type(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, nn.Module)


def _listed(name: str, value: Any, fits: Callable[[object], bool], rule: str) -> tuple[Any, ...]:
    """Return one item, or a sequence of them, as a tuple."""
    if fits(value):
        return (value,)
    if isinstance(value, Sequence) and not isinstance(value, _NO_LIST) and all(map(fits, value)):
        return tuple(value)
    msg = f"`{name}` must {rule}, got {value!r} of type {type(value).__name__}."
    raise TypeError(msg)
