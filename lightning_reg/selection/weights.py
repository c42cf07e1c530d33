"""Which weights a callback acts on, and under which names.

Names are those the user wrote, whatever has been wrapped around the modules since: `torch.compile`, activation
checkpointing and FSDP insert path segments, parametrizations and pruning rename the tensor.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lightning_reg import _checks

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.(original\d*)$")


@dataclass(frozen=True)
class Select:
    """A choice of weights by name, by the type of their module and by their number of dimensions.

    Patterns are globs over full parameter names (`*` matches dots too): `"encoder.*"`, `"*.attention.*.weight"`.
    Biases and the scales of most norm layers have one dimension, so the default `min_ndim` leaves them out. A tied
    weight has several names and counts once: it is chosen if one of its names is, and excluded if one of its names is.
    The two parts of a weight under `weight_norm` are two weights, `<name>.original0` and `<name>.original1`, and both
    answer to `<name>`, too.

    Args:
        include: Glob or globs; a weight must match one.
        exclude: Glob or globs; a weight must match none.
        module_types: If given, only weights that sit directly in a module of one of these types.
        min_ndim: Fewest dimensions of a weight, >= 0.

    Raises:
        TypeError: If a pattern is no string, or a module type no type.
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
            value = getattr(self, name)
            patterns = (value,) if isinstance(value, str) else value
            if not isinstance(patterns, Sequence) or any(not isinstance(item, str) for item in patterns):
                msg = f"`{name}` must be a glob or a list of globs over parameter names, got {value!r}."
                raise TypeError(msg)
            object.__setattr__(self, name, tuple(patterns))
        if not self.include:
            msg = "`include` must hold at least one glob, got none. Leave it out to include every weight."
            raise ValueError(msg)
        types: Any = (self.module_types,) if isinstance(self.module_types, type) else self.module_types
        if not isinstance(types, Sequence) or not all(
            isinstance(item, type) and issubclass(item, nn.Module) for item in types
        ):
            msg = f"`module_types` must hold subclasses of torch.nn.Module, got {self.module_types!r}."
            raise TypeError(msg)
        object.__setattr__(self, "module_types", tuple(types))
        if isinstance(self.min_ndim, bool) or not isinstance(self.min_ndim, int):
            msg = f"`min_ndim` must be an int >= 0, got {self.min_ndim!r}."
            raise TypeError(msg)
        if self.min_ndim < 0:
            msg = f"`min_ndim` must be an int >= 0, got {self.min_ndim}."
            raise ValueError(msg)


Selector = str | Sequence[str] | Select | None


def as_select(select: Selector) -> Select:
    """Return what a user passed as `select` as a `Select`; `None` is the default choice."""
    if select is None:
        return Select()
    return select if isinstance(select, Select) else Select(include=select)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter, once, with all its names."""

    parameter: nn.Parameter
    shape: torch.Size
    plain_name: str
    """Name of the tensor that its module uses; its parts under `weight_norm` share it."""
    modules: list[nn.Module] = field(default_factory=list)
    """Those in which it sits directly: several if it is tied."""
    names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


@dataclass(frozen=True)
class Selection:
    """Outcome of a selection among `weights`: those chosen, and why the others are not."""

    weights: tuple[Weight, ...]
    chosen: tuple[Weight, ...]
    left_out: Mapping[str, str]


def named_weights(module: nn.Module, shapes: Mapping[nn.Parameter, torch.Size] | None = None) -> list[Weight]:
    """Return every parameter of `module` once, with its clean names.

    Args:
        module: The module whose names count.
        shapes: Shapes of parameters that do not show their own (flat shards).

    Raises:
        ValueError: If a lazy module has not seen its first batch, so that its weights have no shape yet.

    """
    weights: dict[nn.Parameter, Weight] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if nn.parameter.is_lazy(parameter):
                msg = (
                    f"The weights of {type(owner).__name__} at {path!r} have no shape yet."
                    " Run one batch through the model before `Trainer.fit`."
                )
                raise ValueError(msg)
            shape = (shapes or {}).get(parameter, parameter.shape)
            names = _clean_names(path, leaf, owner)
            weight = weights.setdefault(parameter, Weight(parameter, shape, names[-1]))
            weight.modules.append(_user_module(module, path))
            weight.names.extend(names)
    return list(weights.values())


def clean_name(path: str) -> str:
    """Return the path of a module or parameter as the user wrote it, without what wrappers have inserted."""
    return _WRAPPERS.sub("", f"{path}.").removesuffix(".")


def _clean_names(path: str, leaf: str, owner: nn.Module) -> list[str]:
    """Return the name the user wrote; after a more precise one where one weight became several tensors."""
    # Pruning and the old spectral norm keep the trained tensor as `weight_orig` beside a computed `weight`.
    plain = leaf.removesuffix("_orig")
    if plain != leaf and hasattr(owner, plain) and not isinstance(getattr(owner, plain), nn.Parameter):
        leaf = plain
    name = clean_name(f"{path}.{leaf}" if path else leaf)
    plain_name = _PARAMETRIZED.sub(r"\1", name)
    if plain_name == name or name.endswith(".original"):
        return [plain_name]
    return [_PARAMETRIZED.sub(r"\1.\2", name), plain_name]


def _user_module(module: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`, or the parametrized module if `path` is the list of its parametrizations."""
    head, found, _ = f".{path}".rpartition(".parametrizations.")
    return module.get_submodule(head.removeprefix(".") if found else path)


def select_weights(weights: Iterable[Weight], select: Select) -> Selection:
    """Apply `select`.

    Args:
        weights: All weights, see `named_weights`.
        select: The choice.

    Returns:
        The weights chosen, trainable or not, and for each other name the reason.

    Raises:
        ValueError: If nothing is chosen, or a pattern or module type matches nothing.

    """
    weights = list(weights)
    _check_patterns(weights, select)
    chosen: list[Weight] = []
    left_out: dict[str, str] = {}
    for weight in weights:
        reason = _name_reason(weight, select) or _kind_reason(weight, select)
        if reason:
            left_out[weight.name] = reason
        else:
            chosen.append(weight)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:5])
        msg = (
            f"`select` must choose at least one weight, but {select} chooses none of {len(weights)}."
            f" {reasons or 'The module has no parameters'}."
        )
        raise ValueError(msg)
    return Selection(tuple(weights), tuple(chosen), left_out)


def _matches(weight: Weight, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in weight.names)


def _name_reason(weight: Weight, select: Select) -> str:
    if not any(_matches(weight, pattern) for pattern in select.include):
        return "matches no pattern of `select`"
    excluded = [pattern for pattern in select.exclude if _matches(weight, pattern)]
    return f"excluded by {excluded[0]!r}" if excluded else ""


def _kind_reason(weight: Weight, select: Select) -> str:
    if not (weight.parameter.is_floating_point() or weight.parameter.is_complex()):
        return f"{weight.parameter.dtype}, no floating-point numbers"
    if select.module_types and not any(isinstance(module, tuple(select.module_types)) for module in weight.modules):
        return f"in a {type(weight.modules[0]).__name__}, no module type of `select`"
    if len(weight.shape) < select.min_ndim:
        return f"{len(weight.shape)} < {select.min_ndim} dimensions"
    return ""


def _check_patterns(weights: Sequence[Weight], select: Select) -> None:
    """Raise if a part of `select` has no effect: it would be a typing error that trains on silently."""
    for module_type in select.module_types:
        if not any(isinstance(module, module_type) for weight in weights for module in weight.modules):
            present = sorted({type(module).__name__ for weight in weights for module in weight.modules})
            msg = (
                f"`select` module type {module_type.__name__} has no weight in this model."
                f" Modules with weights: {', '.join(present) or 'none'}."
            )
            raise ValueError(msg)
    names = [name for weight in weights for name in weight.names]
    for pattern in (*select.include, *select.exclude):
        matching = [weight for weight in weights if _matches(weight, pattern)]
        if not matching and names:
            nearest = _checks.nearest(pattern, names)
            msg = f"`select` pattern {pattern!r} matches no parameter. Nearest names: {nearest}."
            raise ValueError(msg)
        reasons = [_kind_reason(weight, select) for weight in matching]
        if pattern in select.include and reasons and all(reasons):
            too_small = [reason for reason in reasons if "dimensions" in reason]
            remedy = " For biases and norm scales pass `Select(..., min_ndim=1)`." if too_small else ""
            msg = (
                f"`select` pattern {pattern!r} matches {len(matching)} parameters, but none of the right kind."
                f" {matching[0].name}: {reasons[0]}.{remedy}"
            )
            raise ValueError(msg)
