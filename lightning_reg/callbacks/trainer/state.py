"""The seam to Lightning: what a callback must know of the running trainer. Private attributes are read here only."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

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
    """Return the trainer's callbacks of one kind, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]  # set by a connector


def _of_lightning(trainer: Trainer, kind: Kind) -> list[Any]:
    return [callback for callback in callbacks_of(trainer, object) if is_a(callback, kind)]


def insert_callback(trainer: Trainer, new: Callback, after: Callback) -> None:
    """Have Lightning call the hooks of `new` right behind those of `after`, from the hook that is running now on."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    callbacks.insert(callbacks.index(after) + 1, new)


def remove_callback(trainer: Trainer, callback: Callback) -> None:
    """Undo `insert_callback` once the round of hooks that is running has ended."""
    # A new list: taken out of the one that Lightning walks, the next callback would be left out.
    trainer.callbacks = [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]


def has_flat_shards(trainer: Trainer) -> bool:
    """Tell whether parameters are flat pieces of themselves (FSDP1) during training."""
    return is_a(trainer.strategy, "FSDPStrategy")


def has_whole_weights(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Tell whether every rank has all weights, so that it can make a pass of its own."""
    model = getattr(trainer.strategy.model, "_orig_mod", trainer.strategy.model)
    is_plain = model is pl_module or isinstance(model, DistributedDataParallel)
    return is_plain and not has_dtensors(pl_module.parameters())


def original_shapes(trainer: Trainer) -> Mapping[nn.Parameter, torch.Size]:
    """Return the shapes of the parameters that FSDP1 has flattened; a collective call under FSDP1."""
    shapes: dict[nn.Parameter, torch.Size] = {}
    if has_flat_shards(trainer) and isinstance(trainer.model, nn.Module):
        for unit in FullyShardedDataParallel.fsdp_modules(trainer.model):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                for parameter in unit.parameters():
                    # Of another unit this is the flat shard still, which may have all entries, but one dimension.
                    known = shapes.get(parameter, torch.Size([0]))
                    shapes[parameter] = max(known, parameter.shape, key=lambda shape: (shape.numel(), len(shape)))
    return shapes


def marks_unused_parameters(trainer: Trainer) -> bool:
    """Tell whether DDP looks, or has once looked, for parameters that the forward pass did not use.

    It then expects no gradient for them, and fails when a term of the loss that it has not seen brings one.
    """
    model = trainer.strategy.model
    return isinstance(model, DistributedDataParallel) and bool(model.find_unused_parameters or model.static_graph)


def share_of_step(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return which share of an optimizer step's gradient this backward pass makes.

    Lightning divides the loss by `accumulate_grad_batches`, also in a last window that is shorter: that window's
    gradient is weaker by as much. In manual optimization each step is the user's own.
    """
    return 1 / trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1.0


def scale_loss(trainer: Trainer, value: Tensor) -> Tensor:
    """Multiply `value` by what Lightning has multiplied the loss with (fp16 mixed precision)."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scaled: Tensor = value if scaler is None else scaler.scale(value)
    return scaled


def unscaled_loss(trainer: Trainer, loss: Tensor) -> Tensor:
    """Return a copy of `loss` without the scale of fp16."""
    data_loss = whole(loss.detach())
    return data_loss / scale_loss(trainer, torch.ones_like(data_loss))


def may_skip_steps(trainer: Trainer) -> bool:
    """Tell whether a step that Lightning announces may not come, because gradients are not finite (fp16)."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> Tensor | None:
    """Return the factor that this optimizer's gradients still carry before its step; `None` for none.

    Fused optimizers divide by the scale of fp16 inside `step`. A tensor, for reading it would wait for the device.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    return scale_loss(trainer, torch.ones((), device=trainer.strategy.root_device))


def sum_flat_shards(trainer: Trainer, value: Tensor) -> Tensor:
    """Sum over the ranks a value that each has computed from its flat shards (FSDP1); else return it as it is."""
    model = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel) and model.sharding_strategy != ShardingStrategy.NO_SHARD:
        torch.distributed.all_reduce(value, group=model.process_group)
    return value


def running_hook(pl_module: LightningModule) -> str | None:
    """Return which hook Lightning is in, of the module, the strategy (`"backward"`) or any callback."""
    return pl_module._current_fx_name


def tick(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the number of optimizer steps so far; restored from a checkpoint by Lightning.

    In manual optimization `global_step` counts every optimizer's steps, so that a GAN's would count double: there it
    is the number of batches.
    """
    return trainer.global_step if pl_module.automatic_optimization else trainer.fit_loop.total_batch_idx


def total_ticks(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return the number of ticks of the whole run; infinite if nothing tells."""
    if not pl_module.automatic_optimization:
        # `max_steps` counts the steps of all optimizers, and how many a batch makes is up to the user.
        return _epochs(trainer) * trainer.num_training_batches if trainer.max_steps == -1 else math.inf
    for callback in _of_lightning(trainer, "GradientAccumulationScheduler"):
        return _total_by_epoch(trainer, callback.get_accumulate_grad_batches)
    if _has_epoch_without_steps(trainer):
        return _total_by_epoch(trainer, lambda _epoch: trainer.accumulate_grad_batches)
    total = trainer.estimated_stepping_batches
    return math.inf if total == -1 else total  # -1: an iterable dataset and no `max_steps`


def total_epochs(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return the number of epochs of the whole run, the last one perhaps cut; infinite if nothing tells."""
    epochs, batches = _epochs(trainer), trainer.num_training_batches
    # In manual optimization, and in a stream, nobody knows how many steps an epoch has.
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
    """Return how many ticks an epoch has on average; None if nothing tells."""
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
    """Tell whether SWA has added an epoch, in which it only measures what batch norm needs."""
    averages = _of_lightning(trainer, "StochasticWeightAveraging")
    return trainer.max_epochs != -1 and any(callback._model_contains_batch_norm for callback in averages)


def only_measures(trainer: Trainer) -> bool:
    """Tell whether this is the epoch that SWA has added, whose batches are others by Lightning's count."""
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
    """Return the maximum of `value` over all ranks, NaN if one is; a collective call."""
    # Not a reduction to the maximum: whether that keeps a NaN is up to the backend.
    return trainer.strategy.all_gather(value).amax() if trainer.world_size > 1 else value


def steps_now(trainer: Trainer) -> bool:
    """Tell whether the current batch ends with an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


def logs_now(trainer: Trainer, *, first_step: bool) -> bool:
    """Tell whether somebody reads what is logged for the current step.

    Lightning writes at every `log_every_n_steps`-th step. It writes nothing else, but callbacks such as
    `ModelCheckpoint(monitor=...)` look the value up whenever they please: it is there from the first step on, and fresh
    at the end of an epoch.
    """
    if trainer.barebones:
        return False
    return writes_now(trainer) or first_step or ends_epoch(trainer)


def writes_now(trainer: Trainer) -> bool:
    """Tell whether Lightning writes to the loggers what is logged for the current step."""
    is_fast: int = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by Lightning's debugging setup
    return trainer._logger_connector.should_update_logs or bool(is_fast)


def log_step(trainer: Trainer) -> int:
    """Return where the current step lies on the axis that `self.log` uses; once it is over, where the next one does.

    `trainer.global_step` is one more, and counts twice with two manual optimizers.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_prefix(logger: Logger) -> str:
    """Return what a logger puts before every tag; empty for nothing."""
    return getattr(logger, "_prefix", None) or ""


def hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any] | None:
    """Return the hyperparameters that Lightning gives to the loggers after `on_fit_start`; `None` for none."""
    owners = [pl_module, getattr(trainer, "datamodule", None)]
    logged = [owner.hparams_initial for owner in owners if owner is not None and owner._log_hyperparams]
    if not logged:
        return None
    merged = {key: value for values in logged for key, value in values.items() if key != "_class_path"}
    return sanitize_params(flatten_dict(merged))


def writes_default_metric(logger: Logger) -> bool:
    """Tell whether a TensorBoard logger lists `hp_metric` as the one metric of the run."""
    return getattr(logger, "_default_hp_metric", False)


def ends_epoch(trainer: Trainer) -> bool:
    """Tell whether the current accumulation window is the last of the epoch."""
    loop = trainer.fit_loop.epoch_loop
    batches, window = trainer.num_training_batches, trainer.accumulate_grad_batches
    if math.isinf(batches):  # only at the last batch of a stream one knows
        return loop._num_ready_batches_reached()
    return (loop.batch_progress.current.ready - 1) // window == (int(batches) - 1) // window


def may_end_training(trainer: Trainer) -> bool:
    """Tell whether the current step is the last one, as far as can be known while it is made."""
    has_all_steps = trainer.max_steps != -1 and trainer.global_step + 1 >= trainer.max_steps
    is_last_epoch = trainer.should_stop or trainer.current_epoch + 1 >= _epochs(trainer)
    return has_all_steps or (is_last_epoch and ends_epoch(trainer))


def ends_training(trainer: Trainer) -> bool:
    """Tell whether the epoch that is ending is the last with steps, as far as can be known in `on_train_epoch_end`."""
    has_all_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return has_all_steps or trainer.should_stop or trainer.current_epoch + 1 >= _epochs(trainer)
