"""Dropout that the known rates do not control, as far as the source shows it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from torch import nn

from lightning_reg.callbacks.dropout.rates import scripted_rate
from lightning_reg.callbacks.dropout.sites import Site
from lightning_reg.callbacks.dropout.source import child_at, source_of, steps_of_parts
from lightning_reg.selection.modules import named_modules


class Unreached(NamedTuple):
    """Dropout with a rate above 0 that no attribute controls."""

    module: nn.Module
    where: str
    reason: str


def unreached_dropout(root: nn.Module, sites: Sequence[Site], steps: Sequence[str]) -> list[Unreached]:
    """Return dropout outside `sites`, in `forward` and the methods `steps` of `root` and of all modules within it."""
    known = {(site.module, site.attribute) for site in sites}
    methods = steps_of_parts(root, *steps)
    found = []
    for part in named_modules(root):
        module = part.module
        if scripted_rate(module) > 0 and (module, "p") not in known:
            found.append(Unreached(module, f"{part.name!r}", "torch.jit.script turned the rate into a constant"))
        for call in source_of(module, *methods.get(module, ())).calls:
            if call.rate is not None:
                if call.rate > 0:
                    found.append(Unreached(module, call.where, "the rate is in the code"))
            elif call.attribute and (module, call.attribute) not in known and _drops(module, call.attribute):
                found.append(Unreached(module, call.where, f"the rate is `self.{call.attribute}`"))
    return found


def _drops(module: nn.Module, attribute: str) -> bool:
    """Tell whether a rate that is not an attribute of the module itself is above 0 now."""
    path = attribute.split(".")
    if child_at(module, tuple(path[:-1])) is not None:  # that child holds the rate, and is a site itself
        return False
    value: object = module
    with suppress(Exception):  # properties may do anything
        for name in path:
            value = getattr(value, name)
    return isinstance(value, (int, float)) and value > 0
