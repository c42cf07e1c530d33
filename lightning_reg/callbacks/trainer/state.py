"""Read the running trainer: its callbacks, strategy, precision and ranks."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, ShardingStrategy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from lightning_reg.callbacks.trainer.packages import Callback, Kind, LightningModule, Trainer, is_a
from lightning_reg.functional.tensors.shards import has_dtensors, whole

_Kind = TypeVar("_Kind")


def callbacks_of(trainer: Trainer, kind: type[_Kind]) -> list[_Kind]:
    """Return the trainer's callbacks of one kind, in order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]  # set by a connector


def lightning_callbacks(trainer: Trainer, *kinds: Kind) -> list[Any]:
    """Return the trainer's callbacks of these classes of Lightning, in order."""
    return [callback for callback in callbacks_of(trainer, object) if is_a(callback, *kinds)]


def insert_callback(trainer: Trainer, new: Callback, after: Callback) -> None:
    """Make Lightning call each hook of `new` right after the same hook of `after`, starting with the current hook."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    callbacks.insert(callbacks.index(after) + 1, new)


def remove_callback(trainer: Trainer, callback: Callback) -> None:
    """Undo `insert_callback` after the current round of hooks."""
    # Assign a new list: Lightning iterates over the old one, and a removal there would skip the next callback.
    trainer.callbacks = [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]


def has_flat_shards(trainer: Trainer) -> bool:
    """Tell whether parameters are flat shards during training (FSDP1)."""
    return is_a(trainer.strategy, "FSDPStrategy")


def has_whole_weights(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Tell whether every rank has all weights, and can run a forward pass without the other ranks."""
    model = getattr(trainer.strategy.model, "_orig_mod", trainer.strategy.model)
    is_plain = model is pl_module or isinstance(model, DistributedDataParallel)
    return is_plain and not has_dtensors(pl_module.parameters())


def shard_again(pl_module: LightningModule) -> None:
    """Make the modules hold the same sharded parameters as the optimizers, under FSDP2.

    After a forward pass without a backward pass, as in validation, the outermost module holds whole copies instead.
    FSDP2 discards changes of these copies.
    """
    for part in pl_module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def original_shapes(trainer: Trainer) -> Mapping[nn.Parameter, torch.Size]:
    """Return the original shapes of parameters that FSDP1 has flattened; a collective call under FSDP1."""
    shapes: dict[nn.Parameter, torch.Size] = {}
    if has_flat_shards(trainer) and isinstance(trainer.model, nn.Module):
        for unit in FullyShardedDataParallel.fsdp_modules(trainer.model):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                for parameter in unit.parameters():
                    # In another unit this is still the flat shard. It may have all entries, but has one dimension.
                    known = shapes.get(parameter, torch.Size([0]))
                    shapes[parameter] = max(known, parameter.shape, key=lambda shape: (shape.numel(), len(shape)))
    return shapes


def marks_unused_parameters(trainer: Trainer) -> bool:
    """Tell whether DDP searches, or has searched once, for parameters that the forward pass did not use.

    DDP then expects no gradient for these. It fails if a loss term outside its forward pass provides one.
    """
    model = trainer.strategy.model
    return isinstance(model, DistributedDataParallel) and bool(model.find_unused_parameters or model.static_graph)


def share_of_step(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return the share of an optimizer step's gradient that comes from this backward pass.

    Lightning always divides the loss by `accumulate_grad_batches`, so a shorter last window has a smaller gradient. In
    manual optimization, users control each step themselves.
    """
    return 1 / trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1.0


def scale_loss(trainer: Trainer, value: Tensor) -> Tensor:
    """Multiply `value` by the factor that Lightning applied to the loss (fp16 mixed precision)."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scaled: Tensor = value if scaler is None else scaler.scale(value)
    return scaled


def unscaled_loss(trainer: Trainer, loss: Tensor) -> Tensor:
    """Return a copy of `loss` without the scale of fp16."""
    data_loss = whole(loss.detach())
    return data_loss / scale_loss(trainer, torch.ones_like(data_loss))


def may_skip_steps(trainer: Trainer) -> bool:
    """Tell whether a step that Lightning announces may be skipped because gradients are not finite (fp16)."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> Tensor | None:
    """Return the factor that this optimizer's gradients still contain before its step; `None` if there is none.

    Fused optimizers divide by the fp16 scale inside `step`. The factor is a tensor: reading it would wait for the
    device.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    return scale_loss(trainer, torch.ones((), device=trainer.strategy.root_device))


def sum_flat_shards(trainer: Trainer, value: Tensor) -> Tensor:
    """Return the sum over ranks of a value that each rank computed from its flat shards; `value` without FSDP1."""
    model = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel) and model.sharding_strategy != ShardingStrategy.NO_SHARD:
        torch.distributed.all_reduce(value, group=model.process_group)
    return value


def running_hook(pl_module: LightningModule) -> str | None:
    """Return the name of the running hook, of the module, the strategy (`"backward"`) or any callback."""
    return pl_module._current_fx_name


def averaging_callback(trainer: Trainer) -> str | None:
    """Return the name of a callback that averages weights over steps; `None` if there is none."""
    averaging = lightning_callbacks(trainer, "StochasticWeightAveraging", "WeightAveraging")
    return type(averaging[0]).__name__ if averaging else None


def mean_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks; a collective call."""
    mean: Tensor = trainer.strategy.reduce(value, reduce_op="mean") if trainer.world_size > 1 else value
    return mean


def largest_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Return the maximum of `value` over all ranks, NaN if any is NaN; a collective call."""
    # Gather instead of reducing: only some backends keep a NaN in a maximum reduction.
    return trainer.strategy.all_gather(value).amax(0) if trainer.world_size > 1 else value


def sums_over_ranks(trainer: Trainer, values: Tensor) -> Tensor:
    """Return the sums of `values` over all ranks; a collective call."""
    total: Tensor = trainer.strategy.reduce(values, reduce_op="sum") if trainer.world_size > 1 else values
    return total


def rows_not_repeated(trainer: Trainer, batch_idx: int, dataloader_idx: int, rows: int) -> int:
    """Return how many of the `rows` of this rank's validation batch do not repeat samples of the same pass.

    `DistributedSampler` repeats some samples at the end, to give all ranks the same number.
    """
    loader = trainer.fit_loop.epoch_loop.val_loop._combined_loader.flattened[dataloader_idx]  # type: ignore[union-attr]
    sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or size is None:
        return rows
    start = batch_idx * size
    if rows != min(size, sampler.num_samples - start):  # a sample is not one row
        return rows
    total = len(sampler.dataset)  # type: ignore[arg-type]  # has a length, as the sampler demands
    # Ranks take turns, and repetitions come last.
    return min(rows, len(range(sampler.rank, total, sampler.num_replicas)[start:]))


def has_callback(trainer: Trainer, kind: Kind) -> bool:
    """Tell whether the trainer has a callback of this Lightning class."""
    return bool(lightning_callbacks(trainer, kind))
