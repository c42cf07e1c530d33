"""Settings of the trainer that would cut a path: refused before training, with the remedy."""

import math
from collections.abc import Sequence

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import Kind, MisconfigurationException, Trainer, rank_zero_warn

_WHY = "RegularizationPath ends the fit itself, when the last strength has had its time."


def refuse_cuts(trainer: Trainer, strengths: int, epochs: int, *, is_searched: bool) -> None:
    """Raise if the trainer would, or might, stop before the path is over.

    Args:
        trainer: The trainer.
        strengths: The number of strengths.
        epochs: The most epochs for each.
        is_searched: Whether the largest strength is found by epochs that come first.

    """
    if getattr(trainer, "fast_dev_run", False):
        return
    needed, more = strengths * epochs + is_searched, " and those that find the largest strength" if is_searched else ""
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs < needed:
        msg = (
            f"`max_epochs` must be at least {needed}, for {strengths} strengths x {epochs} epochs{more}, got"
            f" {trainer.max_epochs}. {_WHY} Pass `max_epochs=-1`, or ask for fewer `strengths` or `epochs`."
        )
        raise MisconfigurationException(msg)
    batches = trainer.num_training_batches
    if trainer.max_steps != -1:
        steps = math.ceil(batches / trainer.accumulate_grad_batches) * needed
        if trainer.max_steps < steps:
            msg = (
                f"`max_steps` must be at least {steps}, for {strengths} strengths x {epochs} epochs{more}, got"
                f" {trainer.max_steps}. {_WHY} Leave `max_steps` out, and pass `max_epochs=-1`."
            )
            raise MisconfigurationException(msg)
    might_cut: dict[Kind, str] = {"Timer": "`max_time`", "EarlyStopping": "EarlyStopping"}
    for kind, argument in might_cut.items():
        if state.has_callback(trainer, kind):
            msg = f"{argument} might cut the path. {_WHY} Leave it out; `tolerance` ends a strength early."
            raise MisconfigurationException(msg)


def refuse_rare_validation(trainer: Trainer) -> None:
    """Raise if there are epochs without validation: a strength would have the score of another."""
    if trainer.enable_validation and trainer.check_val_every_n_epoch != 1:
        msg = (
            "`check_val_every_n_epoch` must be 1 for a path with a `monitor`, read at the end of each strength,"
            f" got {trainer.check_val_every_n_epoch}."
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


def warn_of_cut(done: int, strengths: Sequence[float]) -> None:
    """Warn that a path has not come to its end."""
    rank_zero_warn(
        f"RegularizationPath was cut after {done} of {len(strengths) or 'its'} strengths; `result` holds these. Fit"
        " again from a checkpoint (`ckpt_path=`) with `max_epochs=-1` to go on."
    )
