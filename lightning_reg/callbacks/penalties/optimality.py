"""The optimality residual `reg/optimality/<name>`: how far a step's gradient is from a minimum."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.penalties.run import Run
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.functional.tensors.chunks import chunk_size, chunks
from lightning_reg.functional.tensors.shards import local_parts


class Member(Protocol):
    """A penalty that may have a residual."""

    strength: float
    mode: str

    @property
    def elementwise(self) -> bool:
        """Whether its term is a sum over single entries."""

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
    tick, scale = state.tick(trainer, pl_module), state.gradient_scale(trainer, optimizer)
    for penalty in penalties:
        run = penalty.run
        # A penalty with a target share of zeros finds its strength after the step.
        if run is None or penalty.mode != "proximal" or run.quota is not None:
            continue
        strength = run.strength_at(penalty.strength, tick) * run.share
        if not strength:
            continue
        # One weight at a time, or less, so that there is no second copy of all gradients.
        each = [
            penalty.residual([part], [_over_strength(grad, strength, scale)])
            for weight in run.targets.of([optimizer])
            for part, grad in _parts(weight, split=penalty.elementwise)
        ]
        values = [value for value in each if value is not None]
        if values:
            worst = torch.stack([value.to(values[0].device) for value in values]).amax()
            found[run.name] = state.largest_over_ranks(trainer, worst) if run.are_sharded else worst
    return found


def _parts(weight: Tensor, *, split: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a weight with its gradient, or flat parts of what this rank has of both, for the cache, if `split`."""
    grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    if grad.is_sparse:
        grad = grad.to_dense()
    if not split:
        yield weight, grad
        return
    own = local_parts([weight, grad])
    for (part,), (slope,) in chunks(own[:1], own[1:], size=chunk_size(own)):
        yield part, slope


def _over_strength(grad: Tensor, strength: float, scale: Tensor | None) -> Tensor:
    """Return the gradient of the data loss over `strength`, in float32 at least."""
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32)) / strength
    return wide if scale is None else wide / scale
