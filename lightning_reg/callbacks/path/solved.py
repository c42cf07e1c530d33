"""Decide whether the weights are close enough to the minimum of their strength."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.settings import Settings
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer
from lightning_reg.functional.proximal.optimality import largest_residual
from lightning_reg.functional.tensors.shards import local_part


def is_solved(settings: Settings, trainer: Trainer, run: PathRun) -> bool:
    """Tell whether the residual of the weights at this strength is within the tolerance.

    At the first strength, the other parameters must be as close. The residual does not always show it: with centred
    inputs, the gradients of the weights do not depend on the intercept. Later, these parameters only follow.
    """
    if settings.tolerance is None or run.mean.is_empty:
        return False
    with torch.no_grad():
        found = [settings.penalty.residual([weight], [run.mean.of(weight) / run.strength]) for weight in run.names]
    values = [value for value in found if value is not None]
    if not values:
        msg = (
            "`tolerance` needs a penalty that defines `residual`, which is 0 at a minimum, got"
            f" {settings.penalty!r}. Define `residual`, or remove `tolerance`."
        )
        raise MisconfigurationException(msg)
    if run.position == 0:
        with torch.no_grad():
            values += [
                _largest(run.mean.of(weight) + _coupled_decay(group) * weight) / run.strength
                for optimizer in trainer.optimizers
                for group in optimizer.param_groups
                for weight in group["params"]
                if weight in run.others and weight in run.mean
            ]
    return bool(state.largest_over_ranks(trainer, largest_residual(values)) <= settings.tolerance)


def others_of(run: PathRun, optimizer: Optimizer) -> list[Tensor]:
    """Return the other parameters of `optimizer` whose gradients `is_solved` needs."""
    if run.position > 0:
        return []
    return [weight for group in optimizer.param_groups for weight in group["params"] if weight in run.others]


def _coupled_decay(group: Mapping[str, Any]) -> float:
    """Return the weight decay that an optimizer adds to the gradient, as SGD does."""
    decay: float = 0.0 if group.get("decoupled_weight_decay") else group.get("weight_decay", 0.0)
    return decay


def _largest(grad: Tensor) -> Tensor:
    """Return the largest entry of this rank's part, in absolute value."""
    part = local_part(grad)
    return part.abs().amax() if part.numel() else part.new_zeros(())
