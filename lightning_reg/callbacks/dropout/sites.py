"""All dropout rates of a model, and the choice of a callback among them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_reg import _checks
from lightning_reg.callbacks.dropout.held import give_back, is_rate, set_value, value_of
from lightning_reg.callbacks.dropout.rates import rates_of
from lightning_reg.callbacks.dropout.source import steps_of_parts
from lightning_reg.selection import Select
from lightning_reg.selection.modules import NamedModule, named_modules, select_modules


@dataclass(frozen=True, eq=False)
class Site:
    """One attribute of one module that is a dropout rate."""

    module: nn.Module
    attribute: str
    names: tuple[str, ...]
    """Names of the module, followed by the attribute if the module has several rates."""
    built: float | None
    """The rate with which the module was built; `None` counts as 0."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def base(self) -> float:
        """The rate with which the module was built, as a number."""
        return float(self.built or 0.0)

    @property
    def value(self) -> float | None:
        """The current rate."""
        value: float | None = value_of(self.module, self.attribute)
        return value

    def set(self, rate: float | None) -> None:
        """Set the rate, for this module alone."""
        set_value(self.module, self.attribute, rate)

    def restore(self) -> None:
        """Set the rate with which the module was built."""
        give_back(self.module, self.attribute, self.built)


def all_sites(module: nn.Module, attribute: Sequence[str], *, steps: Sequence[str]) -> list[Site]:
    """Return every rate, in the order of the model.

    Args:
        module: The module to search.
        attribute: Attributes that are rates, besides those that `rates_of` finds.
        steps: The methods of `module` that are called besides `forward`.

    Raises:
        ValueError: If a name in `attribute` is a number in no module.

    """
    modules = named_modules(module)
    for name in attribute:
        _check_attribute(modules, name)
    methods = steps_of_parts(module, *steps)
    return [
        site for part in modules for site in _sites(part, _rates(part.module, attribute, methods.get(part.module, ())))
    ]


def select_sites(
    module: nn.Module, select: Select, attribute: Sequence[str], *, steps: Sequence[str]
) -> tuple[list[Site], dict[str, str]]:
    """Choose among the rates that `all_sites` returns.

    Args:
        module: The module to search.
        select: Globs over the names of modules, and types.
        attribute: Attributes that are rates, besides those that `rates_of` finds.
        steps: The methods of `module` that are called besides `forward`.

    Returns:
        All rates in the order of the model, and the reason for the name of each rate that is not chosen.

    Raises:
        ValueError: If nothing is chosen, or a part of `select` or `attribute` matches nothing.

    """
    sites = all_sites(module, attribute, steps=steps)
    if not sites:
        msg = (
            f"{type(module).__name__} has no dropout that can be scheduled: no nn.Dropout or other dropout module, no"
            " nn.MultiheadAttention, no nn.LSTM, GRU or RNN with several layers, no stochastic depth, no `F.dropout`"
            " with a rate that a module holds. Add an nn.Dropout, or pass the attribute that holds a rate as"
            " `attribute=`. A call of `F.dropout` with a number in the code can't be scheduled."
        )
        raise ValueError(msg)
    holders = {site.module for site in sites}
    selection = select_modules(
        named_modules(module), select, fits=holders.__contains__, kind="module with a dropout rate"
    )
    chosen = {part.module for part in selection.chosen}
    reasons = {part.module: selection.left_out.get(part.name, "") for part in named_modules(module)}
    return sites, {site.name: reasons[site.module] for site in sites if site.module not in chosen}


def _rates(module: nn.Module, attribute: Sequence[str], methods: Sequence[str]) -> list[str]:
    named = [name for name in attribute if is_rate(module, name)]
    return list(dict.fromkeys([*rates_of(module, *methods), *named]))


def _sites(part: NamedModule, attributes: Sequence[str]) -> list[Site]:
    def named(attribute: str) -> tuple[str, ...]:
        is_only = len(attributes) == 1
        return tuple(path if path and is_only else f"{path}.{attribute}".lstrip(".") for path in part.names)

    return [Site(part.module, name, named(name), value_of(part.module, name)) for name in attributes]


def listed(attribute: str | Sequence[str] | None) -> Sequence[str]:
    """Return a user's `attribute` argument as a list.

    Raises:
        TypeError: If it holds anything but strings.

    """
    names = [] if attribute is None else [attribute] if isinstance(attribute, str) else attribute
    if not _checks.is_list(names) or not all(isinstance(name, str) for name in names):
        msg = f"`attribute` must be the name of an attribute, or a list of names, got {attribute!r}."
        raise TypeError(msg)
    return names


def depths(sites: Sequence[Site]) -> list[float]:
    r"""Return the relative depth of each site: :math:`l / L` in block :math:`l` of :math:`L`.

    Blocks are counted in the order of the model. Rates of one parent belong to one block, unless they are numbered, as
    in `nn.Sequential`.
    """
    blocks = []
    for site in sites:
        parent, _, leaf = site.name.rpartition(".")
        blocks.append(site.name if leaf.isdecimal() else parent)
    order = {block: index for index, block in enumerate(dict.fromkeys(blocks), start=1)}
    return [order[block] / len(order) for block in blocks]


def _check_attribute(modules: Sequence[NamedModule], name: str) -> None:
    if not any(is_rate(part.module, name) for part in modules):
        others = {key for part in modules for key in vars(part.module) if is_rate(part.module, key)}
        present = ", ".join(sorted(others - set(vars(nn.Module())))) or "none"
        msg = f"`attribute` {name!r} is a number in no module of this model. Attributes that are numbers: {present}."
        raise ValueError(msg)
