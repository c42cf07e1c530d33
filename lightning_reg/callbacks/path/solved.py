"""Decide whether the weights are close enough to the minimum of their strength."""

import torch

from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.settings import Settings
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer
from lightning_reg.functional.proximal.optimality import largest_residual


def is_solved(settings: Settings, trainer: Trainer, run: PathRun) -> bool:
    """Tell whether the residual of the weights at this strength is within the tolerance."""
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
    return bool(state.largest_over_ranks(trainer, largest_residual(values)) <= settings.tolerance)
