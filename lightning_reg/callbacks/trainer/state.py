"""Read the state of the running trainer. Only this file reads private attributes of Lightning."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, ShardingStrategy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from lightning_reg.callbacks.trainer.packages import (
    Callback,
    Kind,
    LightningModule,
    Logger,
    Trainer,
    flatten_dict,
    is_a,
    sanitize_params,
)
from lightning_reg.functional.tensors.shards import has_dtensors, whole

_Kind = TypeVar("_Kind")


def callbacks_of(trainer: Trainer, kind: type[_Kind]) -> list[_Kind]:
    """Return the trainer's callbacks of one kind, in order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]  # set by a connector


def _of_lightning(trainer: Trainer, kind: Kind) -> list[Any]:
    return [callback for callback in callbacks_of(trainer, object) if is_a(callback, kind)]


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


def redirects(trainer: Trainer) -> bool:
    """Tell whether Lightning runs `training_step` as a call of the LightningModule, through a wrapper such as DDP."""
    return trainer.strategy.model is not trainer.lightning_module


def shard_again(pl_module: LightningModule) -> None:
    """Make the modules hold the same sharded parameters as the optimizers, under FSDP2.

    After a forward pass without a backward pass, as in validation, the outermost module holds whole copies instead.
    FSDP2 discards what is written to these copies.
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


def tick(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the number of optimizer steps so far, which Lightning restores from a checkpoint.

    In manual optimization, return the number of batches instead. `global_step` adds up the steps of all optimizers, so
    it would count each batch of a GAN twice.
    """
    return trainer.global_step if pl_module.automatic_optimization else trainer.fit_loop.total_batch_idx


def total_ticks(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return the number of ticks of the whole run; infinite if unknown."""
    if not pl_module.automatic_optimization:
        # `max_steps` counts the steps of all optimizers, and users decide how many steps a batch makes.
        return _epochs(trainer) * trainer.num_training_batches if trainer.max_steps == -1 else math.inf
    for callback in _of_lightning(trainer, "GradientAccumulationScheduler"):
        return _total_by_epoch(trainer, callback.get_accumulate_grad_batches)
    if _has_epoch_without_steps(trainer):
        return _total_by_epoch(trainer, lambda _epoch: trainer.accumulate_grad_batches)
    total = trainer.estimated_stepping_batches
    return math.inf if total == -1 else total  # -1: an iterable dataset and no `max_steps`


def total_epochs(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return the number of epochs of the whole run, including an incomplete last one; infinite if unknown."""
    epochs, batches = _epochs(trainer), trainer.num_training_batches
    # In manual optimization, and in a stream, the number of steps in an epoch is unknown.
    if trainer.max_steps == -1 or math.isinf(batches) or not pl_module.automatic_optimization:
        return epochs
    windows = _of_lightning(trainer, "GradientAccumulationScheduler")
    steps, epoch = 0, 0
    while windows and epoch <= max(windows[0].epochs) and steps < trainer.max_steps:
        steps += math.ceil(batches / windows[0].get_accumulate_grad_batches(epoch))
        epoch += 1
    window = windows[0].get_accumulate_grad_batches(epoch) if windows else trainer.accumulate_grad_batches
    return min(epochs, epoch + max(0, math.ceil((trainer.max_steps - steps) / math.ceil(batches / window))))


def steps_in_epoch(trainer: Trainer, pl_module: LightningModule) -> float | None:
    """Return the mean number of ticks in an epoch; None if unknown."""
    ticks, epochs = total_ticks(trainer, pl_module), total_epochs(trainer, pl_module)
    return ticks / epochs if math.isfinite(ticks) and math.isfinite(epochs) and epochs else None


def _total_by_epoch(trainer: Trainer, window_of: Callable[[int], int]) -> float:
    limit = math.inf if trainer.max_steps == -1 else trainer.max_steps
    batches, epochs = trainer.num_training_batches, _epochs(trainer)
    if math.isinf(batches) or math.isinf(epochs):
        return limit
    return min(limit, sum(math.ceil(batches / window_of(epoch)) for epoch in range(int(epochs))))


def _epochs(trainer: Trainer) -> float:
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return math.inf
    return trainer.max_epochs - _has_epoch_without_steps(trainer)


def _has_epoch_without_steps(trainer: Trainer) -> bool:
    """Tell whether SWA has added an epoch that only measures batch norm statistics."""
    averages = _of_lightning(trainer, "StochasticWeightAveraging")
    return trainer.max_epochs != -1 and any(callback._model_contains_batch_norm for callback in averages)


def only_measures(trainer: Trainer) -> bool:
    """Tell whether this is the epoch that SWA has added; Lightning counts its batches differently."""
    averages = _of_lightning(trainer, "StochasticWeightAveraging")
    return _has_epoch_without_steps(trainer) and any(trainer.current_epoch > callback.swa_end for callback in averages)


def averaging_callback(trainer: Trainer) -> str | None:
    """Return the name of a callback that averages weights over steps; `None` if there is none."""
    averaging = _of_lightning(trainer, "StochasticWeightAveraging") + _of_lightning(trainer, "WeightAveraging")
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
    return bool(_of_lightning(trainer, kind))


def logged_sums(trainer: Trainer, name: str) -> tuple[float, float] | None:
    """Return the sum and the number of samples so far of a mean that the current loop logs; `None` if unknown."""
    for metric in _logged_as(trainer._results, name):
        if metric.is_tensor and metric.meta.is_mean_reduction and metric.meta.on_epoch:
            return float(metric.value), float(metric.cumulated_batch_size)
    return None


def is_logged(trainer: Trainer, name: str) -> bool:
    """Tell whether the current loop, training or validation, has logged a value of this name."""
    return any(not metric.has_reset for metric in _logged_as(trainer._results, name))


def is_outdated(trainer: Trainer, name: str) -> bool:
    """Tell whether the value of this name in `callback_metrics` is from an earlier epoch."""
    loop = trainer.fit_loop.epoch_loop
    metrics = [*_logged_as(loop._results, name), *_logged_as(loop.val_loop._results, name)]
    return bool(metrics) and all(metric.has_reset for metric in metrics)


def _logged_as(results: Mapping[str, Any] | None, name: str) -> list[Any]:
    """Return the metrics that Lightning shows under a name."""
    found = []
    for metric in (results or {}).values():
        meta = metric.meta
        index = "" if meta.dataloader_idx is None else f"/dataloader_idx_{meta.dataloader_idx}"
        if name in {f"{meta.name}{fork}{suffix}" for fork in ("", "_step", "_epoch") for suffix in ("", index)}:
            found.append(metric)
    return found


def steps_now(trainer: Trainer) -> bool:
    """Tell whether the current batch ends with an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


def logs_now(trainer: Trainer, *, first_step: bool) -> bool:
    """Tell whether a logger or a callback reads the values logged for the current step.

    Lightning writes to loggers at every `log_every_n_steps`-th step only. But a callback such as
    `ModelCheckpoint(monitor=...)` may read a value at any time. So values exist from the first step on, and are up to
    date at the end of an epoch.
    """
    if trainer.barebones:
        return False
    return writes_now(trainer) or first_step or ends_epoch(trainer)


def writes_now(trainer: Trainer) -> bool:
    """Tell whether Lightning writes the values logged for the current step to the loggers."""
    is_fast: int = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by Lightning's debugging setup
    return trainer._logger_connector.should_update_logs or bool(is_fast)


def log_step(trainer: Trainer) -> int:
    """Return the x-axis position that `self.log` uses for the current step; after the step, for the next one.

    `trainer.global_step` is one larger. With two manual optimizers, it counts each batch twice.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_prefix(logger: Logger) -> str:
    """Return the text that a logger puts before every tag; "" if there is none."""
    return getattr(logger, "_prefix", None) or ""


def hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any] | None:
    """Return the hyperparameters that Lightning passes to loggers after `on_fit_start`; `None` if there are none."""
    owners = [pl_module, getattr(trainer, "datamodule", None)]
    logged = [owner.hparams_initial for owner in owners if owner is not None and owner._log_hyperparams]
    if not logged:
        return None
    merged = {key: value for values in logged for key, value in values.items() if key != "_class_path"}
    return sanitize_params(flatten_dict(merged))


def writes_default_metric(logger: Logger) -> bool:
    """Tell whether a TensorBoard logger lists `hp_metric` as the only metric of the run."""
    return getattr(logger, "_default_hp_metric", False)


def ends_epoch(trainer: Trainer) -> bool:
    """Tell whether the current accumulation window is the last of the epoch."""
    loop = trainer.fit_loop.epoch_loop
    batches, window = trainer.num_training_batches, trainer.accumulate_grad_batches
    if math.isinf(batches):  # Lightning knows the end of a stream only at its last batch
        return loop._num_ready_batches_reached()
    return (loop.batch_progress.current.ready - 1) // window == (int(batches) - 1) // window


def may_end_training(trainer: Trainer) -> bool:
    """Tell whether the current step is the last one, as far as Lightning knows during the step."""
    has_all_steps = trainer.max_steps != -1 and trainer.global_step + 1 >= trainer.max_steps
    is_last_epoch = trainer.should_stop or trainer.current_epoch + 1 >= _epochs(trainer)
    return has_all_steps or (is_last_epoch and ends_epoch(trainer))


def ends_training(trainer: Trainer) -> bool:
    """Tell whether the current epoch is the last one with steps, as far as known in `on_train_epoch_end`."""
    has_all_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return has_all_steps or trainer.should_stop or trainer.current_epoch + 1 >= _epochs(trainer)
