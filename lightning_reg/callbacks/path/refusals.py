"""Check before training that the trainer lets a path run to its end; errors and warnings name the remedy."""

import math
from collections.abc import Collection

from torch import Tensor

from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import Kind, MisconfigurationException, Trainer, rank_zero_warn

_WHY = "RegularizationPath ends the fit itself, after the last strength."


def refuse_cuts(trainer: Trainer, strengths: int, epochs: int, *, is_searched: bool, relaxed_epochs: int) -> None:
    """Raise if the trainer might stop before the path is complete.

    Args:
        trainer: The trainer.
        strengths: The number of strengths.
        epochs: The largest number of epochs per strength.
        is_searched: Whether the first epochs search for the largest strength.
        relaxed_epochs: The number of epochs without the penalty, after the last strength.

    """
    if getattr(trainer, "fast_dev_run", False):
        return
    needed = strengths * epochs + is_searched + relaxed_epochs
    sources = f"{strengths} strengths x {epochs} epochs"
    sources += " + 1 or more to find the largest strength" if is_searched else ""
    sources += f" + {relaxed_epochs} without the penalty" if relaxed_epochs else ""
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs < needed:
        msg = (
            f"`max_epochs` must be at least {needed} ({sources}), got {trainer.max_epochs}. {_WHY} Pass"
            " `max_epochs=-1`, or fewer `strengths` or `epochs`."
        )
        raise MisconfigurationException(msg)
    batches = trainer.num_training_batches
    if trainer.max_steps != -1:
        # The length of a stream is unknown.
        steps = math.inf if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches) * needed
        if trainer.max_steps < steps:
            least = "-1" if math.isinf(steps) else f"at least {steps}"
            msg = (
                f"`max_steps` must be {least} ({sources}), got {trainer.max_steps}. {_WHY} Remove `max_steps`, and pass"
                " `max_epochs=-1`."
            )
            raise MisconfigurationException(msg)
    might_cut: dict[Kind, str] = {"Timer": "`max_time`", "EarlyStopping": "EarlyStopping"}
    for kind, argument in might_cut.items():
        if state.has_callback(trainer, kind):
            msg = (
                f"{argument} might stop the fit before RegularizationPath is complete. {_WHY} Remove it. To end a"
                " strength early, use `tolerance`."
            )
            raise MisconfigurationException(msg)


def refuse_untrained(penalty: str, weights: Collection[Tensor]) -> None:
    """Raise if no optimizer trains a selected weight: the path would be empty."""
    if not weights:
        msg = (
            f"RegularizationPath needs trained weights, but no optimizer trains any weight that {penalty} selects."
            " Change `select`, or give these weights to an optimizer."
        )
        raise MisconfigurationException(msg)


def refuse_averages(trainer: Trainer) -> None:
    """Raise if a callback averages weights over steps, because it would mix all strengths."""
    if averaging := state.averaging_callback(trainer):
        msg = (
            f"{averaging} would average the weights of all strengths, and overwrite the weights that RegularizationPath"
            " chooses. Remove it."
        )
        raise MisconfigurationException(msg)


def refuse_rare_validation(trainer: Trainer) -> None:
    """Raise if epochs end without validation, because the score would belong to earlier weights."""
    if not trainer.enable_validation:
        return
    if trainer.check_val_every_n_epoch != 1:
        msg = (
            "`check_val_every_n_epoch` must be 1, because RegularizationPath reads its `monitor` at the end of each"
            f" strength, got {trainer.check_val_every_n_epoch}. Remove it."
        )
        raise MisconfigurationException(msg)
    batches, every = trainer.num_training_batches, trainer.val_check_batch
    if every and math.isfinite(every) and math.isfinite(batches) and batches % every:
        msg = (
            f"`val_check_interval` must divide the {batches} batches of an epoch, because RegularizationPath reads its"
            f" `monitor` at the end of an epoch, got a validation every {every} batches. Remove it."
        )
        raise MisconfigurationException(msg)


def warn_of_schedulers(trainer: Trainer) -> None:
    """Warn if the learning rates of strengths differ."""
    if trainer.lr_scheduler_configs:
        rank_zero_warn(
            "The learning rate scheduler does not restart at each strength of RegularizationPath, so strengths train"
            " with different learning rates. Remove it, unless its rates repeat with each strength."
        )


def warn_of_unsettled(epochs: int, strength: float) -> None:
    """Warn that the largest strength is not exact, because the other parameters have not converged."""
    rank_zero_warn(
        f"RegularizationPath searched for the largest strength for {epochs} epochs, but the parameters without penalty"
        f" did not converge. It continues with the estimate {strength:.3g}. Raise the learning rate, or pass"
        " `strengths` as a list."
    )


def warn_of_cut(run: PathRun) -> None:
    """Warn that the fit stopped before the path was complete."""
    done = f"{run.position} of {len(run.strengths) or 'its'} strengths (`result` holds these)"
    if run.has_all_points:
        done = f"{run.epochs} of {run.relaxed_epochs} epochs without the penalty"
    rank_zero_warn(
        f"The fit stopped before RegularizationPath was complete, after {done}. To continue, fit again from a"
        " checkpoint (`ckpt_path=`) with `max_epochs=-1`."
    )
