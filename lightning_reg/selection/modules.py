"""Which modules a callback acts on, under the names the user wrote; see `selection` for weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from lightning_reg import _checks
from lightning_reg.selection.weights import Select, Selector, as_select, clean_name


@dataclass(frozen=True, eq=False)
class NamedModule:
    """A module, once, with all its clean names."""

    module: nn.Module
    names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


@dataclass(frozen=True)
class ModuleSelection:
    """Outcome of a selection among modules: those chosen, and for the names of the others why not."""

    chosen: tuple[NamedModule, ...]
    left_out: dict[str, str]


def as_module_select(select: Selector) -> Select:
    """Return what a user passed as `select` of modules as a `Select`.

    Raises:
        TypeError: If a pattern is no string, or a module type no type.
        ValueError: If `include` is empty, or `min_ndim` is set: it is about weights.

    """
    checked = as_select(select)
    if checked.min_ndim != Select.min_ndim:
        msg = f"`min_ndim` of a Select chooses weights, but this `select` chooses modules; got {checked.min_ndim}."
        raise ValueError(msg)
    return checked


def named_modules(module: nn.Module) -> list[NamedModule]:
    """Return every module in `module`, and itself under the name "", once, with its clean names."""
    found: dict[nn.Module, NamedModule] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        found.setdefault(part, NamedModule(part)).names.append(clean_name(path))
    return list(found.values())


def select_modules(
    modules: Sequence[NamedModule], select: Select, *, fits: Callable[[nn.Module], bool], kind: str
) -> ModuleSelection:
    """Choose among the modules that fit.

    Args:
        modules: All modules, see `named_modules`.
        select: Globs over module names, and types. A module with several names is chosen if one of them is, and
            excluded if one of them is.
        fits: Whether the callback can work with a module.
        kind: What such modules are called in messages.

    Returns:
        The modules chosen, and for each other one that fits the reason.

    Raises:
        ValueError: If nothing is chosen, or a pattern or module type matches nothing that fits.

    """
    candidates = [module for module in modules if fits(module.module)]
    _check_patterns(modules, candidates, select, kind)
    chosen, left_out = [], {}
    for candidate in candidates:
        reason = _reason(candidate, select)
        if reason:
            left_out[candidate.name] = reason
        else:
            chosen.append(candidate)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:5])
        msg = f"`select` must choose at least one {kind}, but {select} chooses none of {len(candidates)}. {reasons}."
        raise ValueError(msg)
    return ModuleSelection(tuple(chosen), left_out)


def _matches(module: NamedModule, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in module.names)


def _reason(module: NamedModule, select: Select) -> str:
    if not any(_matches(module, pattern) for pattern in select.include):
        return "matches no pattern of `select`"
    excluded = [pattern for pattern in select.exclude if _matches(module, pattern)]
    if excluded:
        return f"excluded by {excluded[0]!r}"
    if select.module_types and not isinstance(module.module, tuple(select.module_types)):
        return f"a {type(module.module).__name__}, no module type of `select`"
    return ""


def _check_patterns(
    modules: Sequence[NamedModule], candidates: Sequence[NamedModule], select: Select, kind: str
) -> None:
    """Raise if a part of `select` has no effect: it would be a typing error that trains on silently."""
    names = [name for candidate in candidates for name in candidate.names]
    for module_type in select.module_types:
        if not any(isinstance(candidate.module, module_type) for candidate in candidates):
            present = sorted({type(candidate.module).__name__ for candidate in candidates})
            msg = (
                f"`select` module type {module_type.__name__} is no {kind} in this model."
                f" Those there: {', '.join(present) or 'none'}."
            )
            raise ValueError(msg)
    for pattern in (*select.include, *select.exclude):
        if any(_matches(candidate, pattern) for candidate in candidates):
            continue
        others = [module for module in modules if _matches(module, pattern)]
        nearest = _checks.nearest(pattern, names)
        found = f"matches {len(others)} modules, but no {kind}" if others else f"matches no {kind}"
        msg = f"`select` pattern {pattern!r} {found}. Nearest names: {nearest}."
        raise ValueError(msg)
