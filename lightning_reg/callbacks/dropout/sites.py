"""Which modules hold a dropout rate, and under which attribute."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from torch import nn

from lightning_reg.functional.dropout import is_drop_path
from lightning_reg.selection import Select
from lightning_reg.selection.modules import NamedModule, named_modules, select_modules

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_IN_ATTENTION = ("dropout", "attention_dropout")


@dataclass(frozen=True, eq=False)
class Site:
    """One attribute of one module that is a dropout rate."""

    module: nn.Module
    attribute: str
    names: tuple[str, ...]
    """Of the module; with the attribute behind it where the module has several rates."""
    built: float | None
    """What the module was built with; `None` counts as 0."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def base(self) -> float:
        """The rate it was built with."""
        return float(self.built or 0.0)


def rates_of(module: nn.Module) -> list[str]:
    """Return the attributes of `module` that are dropout rates, by its type or by what such modules have in common."""
    if isinstance(module, _DROPOUTS):
        return ["p"]
    if isinstance(module, nn.MultiheadAttention):
        return ["dropout"]
    if isinstance(module, nn.RNNBase):
        # Between layers only: with one layer there is nothing to drop.
        return ["dropout"] if module.num_layers > 1 else []
    if is_drop_path(module) and _is_rate(module, "p"):
        return ["p"]
    names = _IN_ATTENTION if "attention" in type(module).__name__.lower() else ()
    # `None`: no stochastic depth for the moment, in timm and Hugging Face.
    has_drop_prob = _is_rate(module, "drop_prob") or vars(module).get("drop_prob", 0) is None
    return [*(["drop_prob"] if has_drop_prob else []), *(name for name in names if _is_rate(module, name))]


def all_sites(module: nn.Module) -> list[Site]:
    """Return every rate that `rates_of` finds, in the order of the model."""
    return [site for part in named_modules(module) for site in _sites(part, rates_of(part.module))]


def select_sites(module: nn.Module, select: Select, attribute: Sequence[str]) -> tuple[list[Site], dict[str, str]]:
    """Choose rates.

    Args:
        module: The module to search.
        select: Globs over the names of modules, and types.
        attribute: The attributes that are rates; empty for those that `rates_of` finds.

    Returns:
        All rates in the order of the model, and for the names of those that are not chosen the reason.

    Raises:
        ValueError: If nothing is chosen, or a part of `select` or `attribute` matches nothing.

    """
    modules = named_modules(module)
    for name in attribute:
        _check_attribute(modules, name)

    def rates(part: nn.Module) -> list[str]:
        return [name for name in attribute if _is_rate(part, name)] if attribute else rates_of(part)

    if not any(rates(part.module) for part in modules):
        msg = (
            f"{type(module).__name__} has no dropout that can be scheduled: no nn.Dropout or other dropout module, no"
            " nn.MultiheadAttention, no nn.LSTM, GRU or RNN of several layers, no stochastic depth, no attention module"
            " with a rate. Add an nn.Dropout, or name the attribute that holds a rate by `attribute=`. Dropout by"
            " `F.dropout` with a number in the code can't be scheduled."
        )
        raise ValueError(msg)
    selection = select_modules(modules, select, fits=lambda part: bool(rates(part)), kind="module with a dropout rate")
    sites: list[Site] = []
    left_out: dict[str, str] = {}
    for part in modules:
        found = _sites(part, rates(part.module))
        sites += found
        if part not in selection.chosen:
            left_out.update((site.name, selection.left_out[part.name]) for site in found)
    return sites, left_out


def _sites(part: NamedModule, attributes: Sequence[str]) -> list[Site]:
    def named(attribute: str) -> tuple[str, ...]:
        is_only = len(attributes) == 1
        return tuple(path if path and is_only else f"{path}.{attribute}".lstrip(".") for path in part.names)

    return [Site(part.module, name, named(name), vars(part.module)[name]) for name in attributes]


def depths(sites: Sequence[Site]) -> list[float]:
    r"""Return for each site how deep it sits: :math:`l / L` in block :math:`l` of :math:`L`.

    Blocks are counted in the order of the model. Rates of one parent belong to one block, unless they are numbered, as
    in `nn.Sequential`.
    """
    blocks = []
    for site in sites:
        parent, _, leaf = site.name.rpartition(".")
        blocks.append(site.name if leaf.isdecimal() else parent)
    order = {block: index for index, block in enumerate(dict.fromkeys(blocks), start=1)}
    return [order[block] / len(order) for block in blocks]


def _is_rate(module: nn.Module, name: str) -> bool:
    value = vars(module).get(name)
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_attribute(modules: Sequence[NamedModule], name: str) -> None:
    if not any(_is_rate(part.module, name) for part in modules):
        others = {key for part in modules for key in vars(part.module) if _is_rate(part.module, key)}
        present = ", ".join(sorted(others - set(vars(nn.Module())))) or "none"
        msg = f"`attribute` {name!r} is a number in no module of this model. Attributes that are numbers: {present}."
        raise ValueError(msg)
