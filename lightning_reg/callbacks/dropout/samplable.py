"""Which dropout can be active in evaluation, and the origin of rates of 0."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_reg.callbacks.dropout.rates import is_dropout, scripted_rate
from lightning_reg.callbacks.dropout.sites import Site, all_sites
from lightning_reg.callbacks.dropout.source import source_of
from lightning_reg.callbacks.trainer.packages import LightningModule, rank_zero_warn
from lightning_reg.selection.modules import named_modules


def samplable_sites(root: nn.Module, attribute: Sequence[str], steps: Sequence[str]) -> tuple[list[Site], list[Site]]:
    """Return the rates of modules that may be in training mode for dropout, and the rates of all other modules.

    The other modules do more than dropout in training mode. Attributes that the user named count as the first kind.

    Args:
        root: The model.
        attribute: The attributes that the user named.
        steps: The methods of `root` that are called besides `forward`.

    """
    on: list[Site] = []
    off: list[Site] = []
    for site in all_sites(root, attribute, steps=steps):
        is_safe = site.attribute in attribute or _does_dropout_only(site.module, steps if site.module is root else ())
        (on if is_safe or not site.base else off).append(site)
    scripted = [Site(part.module, "p", tuple(part.names), scripted_rate(part.module)) for part in named_modules(root)]
    return on + [site for site in scripted if site.base], off


def warn_of_those_left_off(sites: Sequence[Site]) -> None:
    """Warn of each rate that stays off, with the remedy."""
    for kind, attribute in dict.fromkeys((type(site.module), site.attribute) for site in sites):
        name = next(site.name for site in sites if (type(site.module), site.attribute) == (kind, attribute))
        rank_zero_warn(
            f"{name!r} ({kind.__name__}): this dropout stays off in MonteCarloDropout, because the module does more"
            f" than dropout in training mode. To put it into training mode, pass `attribute={attribute!r}`."
        )


def origin_of_zeros(pl_module: LightningModule, sites: Sequence[Site]) -> str:
    """Return the origin of rates of 0, as far as it is visible, for a message."""
    hyperparameters = [f"`{name}={value!r}`" for name, value in _zeros(dict(pl_module.hparams))]
    if hyperparameters:
        return (
            f", set by its hyperparameters {', '.join(hyperparameters)}, which a checkpoint also stores: pass the"
            " training rate to `load_from_checkpoint(path, ...)` under the same names"
        )
    configured = [
        f"`{part.name}.{key}.{name}={number!r}`".replace("`.", "`")
        for part in named_modules(pl_module)
        for key, value in vars(part.module).items()
        if not isinstance(value, (nn.Module, dict, str)) and hasattr(value, "__dict__") and "config" in key
        for name, number in _zeros(vars(value))
    ]
    if configured:
        return f", set by {', '.join(configured[:5])}"
    return f", as {', '.join(repr(site.name) for site in sites[:5])} {'was' if len(sites) == 1 else 'were'} built"


def _does_dropout_only(module: nn.Module, steps: Sequence[str]) -> bool:
    if (
        type(module).__module__.startswith("torch.")
        or is_dropout(module)
        or "attention" in type(module).__name__.lower()
    ):
        return True
    return not source_of(module, *steps).asks_training


def _zeros(values: Mapping[str, Any], prefix: str = "", depth: int = 4) -> Iterator[tuple[str, float]]:
    """Yield the numbers that are 0 and have a dropout name, also inside the objects in `values`."""
    for name, value in values.items():
        inner = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        if inner is not None and depth and not isinstance(value, (nn.Module, type)):
            yield from _zeros(inner, f"{prefix}{name}.", depth - 1)
        elif type(value) in (int, float) and value == 0 and "drop" in f"{prefix}{name}".lower():
            yield f"{prefix}{name}", value
