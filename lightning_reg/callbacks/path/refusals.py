"""Settings of the trainer that would cut a path: refused before training, with the remedy."""

import math
from collections.abc import Collection

from torch import Tensor

from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import Kind, MisconfigurationException, Trainer, rank_zero_warn

_WHY = "RegularizationPath ends the fit itself, when the last strength has had its time."


def refuse_cuts(
    trainer: Trainer, strengths: int, epochs: int, *, is_searched: bool = False, relaxed_epochs: int = 0
) -> None:
    """Raise if the trainer would, or might, stop before the path is over.

    Args:
        trainer: The trainer.
        strengths: The number of strengths.
        epochs: The most epochs for each.
        is_searched: Whether the largest strength is found by epochs that come first.
        relaxed_epochs: How many epochs come last, without the penalty.

    """
    if getattr(trainer, "fast_dev_run", False):
        return
    needed = strengths * epochs + is_searched + relaxed_epochs
    more = " and those that find the largest strength" if is_searched else ""
    more += f" and {relaxed_epochs} without the penalty" if relaxed_epochs else ""
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs < needed:
        msg = (
            f"`max_epochs` must be at least {needed}, for {strengths} strengths x {epochs} epochs{more}, got"
            f" {trainer.max_epochs}. {_WHY} Pass `max_epochs=-1`, or ask for fewer `strengths` or `epochs`."
        )
        raise MisconfigurationException(msg)
    batches = trainer.num_training_batches
    if trainer.max_steps != -1:
        # A stream has any number of batches.
        steps = math.inf if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches) * needed
        if trainer.max_steps < steps:
            least = "-1" if math.isinf(steps) else f"at least {steps}"
            msg = (
                f"`max_steps` must be {least}, for {strengths} strengths x {epochs} epochs{more}, got"
                f" {trainer.max_steps}. {_WHY} Leave `max_steps` out, and pass `max_epochs=-1`."
            )
            raise MisconfigurationException(msg)
    might_cut: dict[Kind, str] = {"Timer": "`max_time`", "EarlyStopping": "EarlyStopping"}
    for kind, argument in might_cut.items():
        if state.has_callback(trainer, kind):
            msg = f"{argument} might cut the path. {_WHY} Leave it out; `tolerance` ends a strength early."
            raise MisconfigurationException(msg)


def refuse_untrained(penalty: str, weights: Collection[Tensor]) -> None:
    """Raise if no chosen weight is trained: there is no path."""
    if not weights:
        msg = f"RegularizationPath needs weights that are trained, but no optimizer trains any that {penalty} selects."
        raise MisconfigurationException(msg)


def refuse_averages(trainer: Trainer) -> None:
    """Raise if a callback averages weights over steps: it would mix all strengths."""
    if averaging := state.averaging_callback(trainer):
        msg = (
            f"{averaging} would average the weights of all strengths, and leave the average in the module instead of"
            " the choice of RegularizationPath. Leave it out."
        )
        raise MisconfigurationException(msg)


def refuse_rare_validation(trainer: Trainer) -> None:
    """Raise if epochs end without validation: a strength would have the score of other weights."""
    if not trainer.enable_validation:
        return
    if trainer.check_val_every_n_epoch != 1:
        msg = (
            "`check_val_every_n_epoch` must be 1 for a path with a `monitor`, read at the end of each strength,"
            f" got {trainer.check_val_every_n_epoch}."
        )
        raise MisconfigurationException(msg)
    batches, every = trainer.num_training_batches, trainer.val_check_batch
    if every and math.isfinite(every) and math.isfinite(batches) and batches % every:
        msg = (
            f"`val_check_interval` must divide the {batches} batches of an epoch for a path with a `monitor`, so that"
            f" each epoch ends with a validation, got a validation every {every} batches. Leave it out."
        )
        raise MisconfigurationException(msg)


def warn_of_schedulers(trainer: Trainer) -> None:
    """Warn if learning rates change along the path."""
    if trainer.lr_scheduler_configs:
        rank_zero_warn(
            "A learning rate scheduler runs on through all strengths of RegularizationPath, so that each trains with"
            " other rates. Leave it out, unless its rates start again with each strength."
        )


def warn_of_unsettled(epochs: int, strength: float) -> None:
    """Warn that the largest strength is not exact: the other parameters were not at their optimum."""
    rank_zero_warn(
        f"RegularizationPath looked for the largest strength for {epochs} epochs, in which the parameters that the"
        f" penalty leaves alone did not settle, and goes on with {strength:.3g}. Train with a higher learning rate, or"
        " pass the strengths as a list."
    )


def warn_of_cut(run: PathRun) -> None:
    """Warn that a path has not come to its end."""
    done = f"{run.position} of {len(run.strengths) or 'its'} strengths; `result` holds these"
    if run.has_all_points:
        done = f"{run.epochs} of {run.relaxed_epochs} epochs without the penalty"
    rank_zero_warn(
        f"RegularizationPath was cut after {done}. Fit again from a checkpoint (`ckpt_path=`) with `max_epochs=-1` to"
        " go on."
    )
