"""Warnings of dropout that the known rates do not control, found in the source or by a pass."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_reg.callbacks.dropout.behaviour import random_parts
from lightning_reg.callbacks.dropout.held import is_rate, value_of
from lightning_reg.callbacks.dropout.sites import Site
from lightning_reg.callbacks.dropout.source import source_of
from lightning_reg.callbacks.dropout.unreached import unreached_dropout
from lightning_reg.callbacks.trainer import state, unobserved
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer, rank_zero_info, rank_zero_warn
from lightning_reg.selection.modules import named_modules


def warn_of_unreached(root: nn.Module, sites: Sequence[Site], steps: Sequence[str], consequence: str) -> None:
    """Warn of each call in the source that drops at a rate outside `sites`.

    Args:
        root: The model.
        sites: All known rates.
        steps: The methods of `root` that are called besides `forward`.
        consequence: The consequence for the message, with `{reason}` in the place of the reason.

    """
    messages = {item.where: item.reason for item in unreached_dropout(root, sites, steps)}
    for where, reason in messages.items():
        rank_zero_warn(f"{where}: {consequence.format(reason=reason)}")


def ask_training_step(
    trainer: Trainer, pl_module: LightningModule, sites: Sequence[Site], step: tuple[Any, int]
) -> None:
    """Make two passes of `training_step` with all rates at 0, and warn of modules that are still random.

    Skipped in manual optimization, and if a pass gathers weights from other ranks.
    """
    if pl_module.automatic_optimization and state.has_whole_weights(trainer, pl_module):
        run = unobserved.training_step(trainer, pl_module, *step)
        warn_of_random(
            pl_module, run, sites, trainer.strategy.root_device, ("training_step",), "no schedule sets this rate"
        )


def ask_evaluation(
    root: nn.Module, call: partial[Any], sites: Sequence[Site], device: torch.device, steps: Sequence[str]
) -> None:
    """Make two passes by `call` with all modules except norms in training mode, and warn of random modules."""

    def run() -> Any:
        for module in root.modules():
            if not isinstance(module, (_NormBase, torch.jit.ScriptModule)):  # modes of torch.jit can't be restored
                module.training = True
        return call.func(*copy.deepcopy(call.args), **copy.deepcopy(call.keywords))

    settable = [site for site in sites if not isinstance(site.module, torch.jit.ScriptModule)]
    warn_of_random(root, run, settable, device, steps, "this stays off in MonteCarloDropout")


def warn_of_random(
    root: nn.Module,
    run: Callable[[], Any],
    sites: Sequence[Site],
    device: torch.device,
    steps: Sequence[str],
    consequence: str,
) -> None:
    """Warn of modules that drop in `run` although all `sites` are at 0, unless the source already showed them.

    Args:
        root: The model.
        run: Makes a pass.
        sites: All known rates.
        device: The device of the model.
        steps: The methods of `root` that are called besides `forward`.
        consequence: The consequence for such a module, for the message.

    """
    try:
        parts = random_parts(root, run, sites, device)
    except Exception as error:  # a step can raise anything; the real step will show the error
        rank_zero_info(f"The search for further dropout failed, and is skipped: {error!r}")
        return
    told = {item.module for item in unreached_dropout(root, sites, steps)}
    names = {part.module: part.name for part in named_modules(root)}
    for part in parts:
        if not any(inner in told for inner in part.modules()):
            alike = sum(type(other) is type(part) for other in names)
            others = f" and {alike - 1} more of its kind" if alike > 1 else ""
            rank_zero_warn(
                f"{names[part] or 'The step'!r} ({_class_of(part)}){others} is random in training although all known"
                f" dropout rates are 0: {consequence}. {_hint(part, sites)}"
            )


def _hint(part: nn.Module, sites: Sequence[Site]) -> str:
    known = {site.attribute for site in sites if site.module is part}
    source = source_of(part)
    read = {".".join(path) for path in source.reads} if source.is_known else set(vars(part))
    numbers = [name for name in sorted(read - known) if is_rate(part, name) and 0 < value_of(part, name) <= 1]
    calls = [call.where for call in source.calls if call.rate is None and call.attribute is None]
    return (f"See {'; '.join(calls)}. " if calls else "") + (
        f"If one of these is the rate, name it: {', '.join(f'`attribute={name!r}`' for name in numbers)}."
        if numbers
        else "It reads no attribute that could be a rate."
    )


def _class_of(part: nn.Module) -> str:
    return str(getattr(part, "original_name", type(part).__name__))
