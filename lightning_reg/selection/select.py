"""The user's choice of weights or modules: globs over names, module types and a number of dimensions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_reg import _checks

# Some module types are sequences too. An empty one would pass for an empty list.
_NO_LIST = (str, bytes, bytearray, memoryview, range)


@dataclass(frozen=True)
class Select:
    """A choice of weights by name, by the type of their module and by their number of dimensions.

    Patterns are globs over full parameter names (`*` matches dots too): `"encoder.*"`, `"*.attention.*.weight"`.
    Biases and the scales of most norm layers have one dimension, so the default `min_ndim` leaves them out. A tied
    weight has several names and counts once: it is included if one name matches, and excluded if one name matches.
    Under `weight_norm` a weight has two parts, `<name>.original0` and `<name>.original1`; `<name>` matches both.
    Parameters that sit in no layer (class tokens, position tables, layer scales) are chosen like other weights, and the
    plan marks them. `Select(module_types=[nn.Linear])` and `Select("*.weight")` leave them out.

    Args:
        include: Glob or globs; a weight must match one.
        exclude: Glob or globs; a weight must match none.
        module_types: If given, only weights that sit directly in a module of one of these types.
        min_ndim: Fewest dimensions of a weight, >= 0.

    Raises:
        TypeError: If an argument is of the wrong kind: a pattern is not a string, or a module type not a type.
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
    """Return the `Select` for a user's `select` argument; `None` is the default choice."""
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
