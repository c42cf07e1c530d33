"""Read how far training is, and how long the run is: in steps, batches and epochs."""

import math
from collections.abc import Callable

from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.state import lightning_callbacks


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
    for callback in lightning_callbacks(trainer, "GradientAccumulationScheduler"):
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
    windows = lightning_callbacks(trainer, "GradientAccumulationScheduler")
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
    averages = lightning_callbacks(trainer, "StochasticWeightAveraging")
    return trainer.max_epochs != -1 and any(callback._model_contains_batch_norm for callback in averages)


def only_measures(trainer: Trainer) -> bool:
    """Tell whether this is the epoch that SWA has added; Lightning counts its batches differently."""
    averages = lightning_callbacks(trainer, "StochasticWeightAveraging")
    return _has_epoch_without_steps(trainer) and any(trainer.current_epoch > callback.swa_end for callback in averages)


def steps_now(trainer: Trainer) -> bool:
    """Tell whether the current batch ends with an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


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
