"""The optimality residual `reg/optimality/<name>`: how far a step's gradient is from a minimum."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.penalties.run import Run
from lightning_reg.callbacks.trainer import progress, state
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.functional.proximal.optimality import largest_residual
from lightning_reg.functional.tensors.shards import dense_gradient


class Member(Protocol):
    """A penalty that may have a residual."""

    strength: float
    mode: str

    @property
    def run(self) -> Run | None:
        """Its state during a fit."""

    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor | None:
        """Return the largest distance of any `-grads` from the subdifferential of the term at strength 1."""


@torch.no_grad()
def residuals(
    trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, penalties: Sequence[Member]
) -> Mapping[str, Tensor]:
    """Return the residual of each proximal penalty, by its name, for the gradients that `optimizer` is about to use.

    A collective call where weights are sharded.
    """
    found: dict[str, Tensor] = {}
    tick, scale = progress.tick(trainer, pl_module), state.gradient_scale(trainer, optimizer)
    for penalty in penalties:
        run = penalty.run
        # A penalty with a target share of zeros finds its strength after the step.
        if run is None or penalty.mode != "proximal" or run.quota is not None:
            continue
        strength = run.strength_at(penalty.strength, tick) * run.share
        if not strength:
            continue
        # One weight at a time, so that there is no second copy of all gradients.
        each = [penalty.residual([w], [_gradient(w, strength, scale)]) for w in run.targets.of([optimizer])]
        values = [value for value in each if value is not None]
        if values:
            worst = largest_residual(values)
            found[run.name] = state.largest_over_ranks(trainer, worst) if run.are_sharded else worst
    return found


def _gradient(weight: Tensor, strength: float, scale: Tensor | None) -> Tensor:
    """Return the gradient of the data loss over `strength`, in float32 at least."""
    grad = dense_gradient(weight)
    if grad is None:
        return torch.zeros_like(weight)
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32)) / strength
    return wide if scale is None else wide / scale
