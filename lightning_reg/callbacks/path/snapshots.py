"""Copies of a module's parameters and buffers on the CPU, to restore the module or to restart training from them."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Adagrad

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.functional.tensors.shards import Offloaded, local_part, spread_like


class Snapshot:
    """The parameters and buffers of a module; if they are sharded, the parts of this rank."""

    def __init__(self, module: LightningModule, saved: Mapping[str, Tensor] | None = None) -> None:
        self._kept = {
            name: Offloaded(
                tensor if saved is None else spread_like(saved[name].to(tensor.device), tensor), tensor.device
            )
            for name, tensor in _tensors(module)
            if saved is None or name in saved
        }

    @torch.no_grad()
    def restore(self, module: LightningModule) -> None:
        """Copy the stored parameters and buffers back into the module."""
        for name, tensor in _tensors(module):
            if name in self._kept:
                local_part(tensor).copy_(self._kept[name].part)

    def start_from(self, trainer: Trainer, module: LightningModule) -> None:
        """Copy the stored parameters and buffers back into the module, and reset the optimizers."""
        self.restore(module)
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, Adagrad):  # before torch 2.13, only its constructor creates its state
                for group in optimizer.param_groups:
                    for kept in (optimizer.state[weight] for weight in group["params"]):
                        kept["step"].zero_()
                        kept["sum"].fill_(group["initial_accumulator_value"])
            else:
                optimizer.state.clear()

    def state(self) -> dict[str, Tensor]:
        """Return whole tensors for a checkpoint; a collective call if they are sharded."""
        return {name: kept.whole().to("cpu", copy=True) for name, kept in self._kept.items()}


def _tensors(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    state.shard_again(module)
    yield from module.named_parameters()
    yield from module.named_buffers()
