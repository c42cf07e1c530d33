"""When a strength has had enough epochs: its weights are near the minimum."""

import torch

from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.settings import Settings
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer


def is_solved(settings: Settings, trainer: Trainer, run: PathRun) -> bool:
    """Tell whether the weights are near enough to the minimum at this strength."""
    if settings.tolerance is None or run.mean.is_empty:
        return False
    strength = run.strengths[run.position]
    with torch.no_grad():
        found = [settings.penalty.residual([weight], [run.mean.of(weight) / strength]) for weight in run.names]
    values = [value for value in found if value is not None]
    if not values:
        msg = (
            f"`tolerance` needs a penalty that defines `residual`, the distance from a minimum, got"
            f" {settings.penalty!r}. Define it, or leave `tolerance` out."
        )
        raise MisconfigurationException(msg)
    worst = torch.stack([value.to(values[0].device) for value in values]).amax()
    return bool(state.largest_over_ranks(trainer, worst) <= settings.tolerance)
