"""The modules that a callback acts on, under the names the user wrote."""

from collections.abc import Callable, Sequence

from torch import nn

from lightning_reg.selection.choice import Choice, Named, Words, choose
from lightning_reg.selection.select import Select, Selector, as_select
from lightning_reg.selection.weights import clean_name


class NamedModule(Named):
    """One module with all its clean names."""

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self.modules[0]


def as_module_select(select: Selector) -> Select:
    """Return the `Select` for a `select` argument that chooses modules.

    Raises:
        TypeError: If a pattern is not a string, or a module type not a type.
        ValueError: If `include` is empty, or `min_ndim` is set, which applies to weights only.

    """
    checked = as_select(select)
    if checked.min_ndim != Select.min_ndim:
        msg = (
            "`min_ndim` must be left out of a `select` that chooses modules, because it is about weights,"
            f" got {checked.min_ndim}."
        )
        raise ValueError(msg)
    return checked


def named_modules(module: nn.Module) -> list[NamedModule]:
    """Return every module in `module` once with its clean names, and `module` itself under the name ""."""
    found: dict[nn.Module, NamedModule] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        found.setdefault(part, NamedModule(modules=[part])).names.append(clean_name(path))
    return list(found.values())


def select_modules(
    modules: Sequence[NamedModule], select: Select, *, fits: Callable[[nn.Module], bool], kind: str
) -> Choice[NamedModule]:
    """Choose among the modules that the callback can work with.

    Args:
        modules: All modules, see `named_modules`.
        select: Globs over module names, and types.
        fits: Whether the callback can work with a module.
        kind: The word of messages for such modules.

    Returns:
        The modules chosen, and the reason for each fitting module left out.

    Raises:
        ValueError: If nothing is chosen, or a pattern or module type matches nothing that fits.

    """
    words = Words(kind, named=kind, things="modules", has="is")
    return choose([module for module in modules if fits(module.module)], select, words, others=modules)
