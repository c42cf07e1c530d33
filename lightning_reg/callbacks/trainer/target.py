"""The module that a callback observes, by the name that the user passed."""

from torch import nn

from lightning_reg import _checks
from lightning_reg.callbacks.trainer.packages import LightningModule
from lightning_reg.selection.weights import clean_name


def check_target(target: object) -> str | None:
    """Return `target`. Raise unless it is the name of a module or None."""
    if target is not None and not isinstance(target, str):
        msg = f"`target` must be the name of a module or None, got {target!r}."
        raise TypeError(msg)
    return target


def modules_named(pl_module: LightningModule, name: str | None) -> list[nn.Module]:
    """Return the module of that name, after the wrappers around it. `None` stands for the LightningModule.

    Raises:
        ValueError: If no module has that name.

    """
    if name is None:
        return [pl_module]
    found: dict[str, list[nn.Module]] = {}
    for path, module in pl_module.named_modules(remove_duplicate=False):
        found.setdefault(clean_name(path), []).append(module)
    if name not in found:
        nearest = _checks.nearest(name, filter(None, found))
        msg = f"`target` {name!r} is not a module of {type(pl_module).__name__}. Nearest names: {nearest}."
        raise ValueError(msg)
    return found[name]
