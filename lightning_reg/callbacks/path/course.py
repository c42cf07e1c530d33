"""The course of a path: which strength trains, from which weights, and when the next one begins."""

import math

import torch
from torch.optim import Optimizer

from lightning_reg.callbacks.path import relaxed
from lightning_reg.callbacks.path.extrapolation import extrapolate
from lightning_reg.callbacks.path.largest import look, vanishing
from lightning_reg.callbacks.path.points import add_point
from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.settings import Settings
from lightning_reg.callbacks.path.solved import is_solved, others_of
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer

# A strength that holds all weights at zero, whatever their gradients. Low precisions use their largest number instead.
_HOLDS_AT_ZERO = 1e12
# The number of minima that define a line.
_POINTS = 2


def enter(settings: Settings, trainer: Trainer, pl_module: LightningModule, run: PathRun) -> None:
    """Set the strength and the first weights of the coming steps."""
    if run.has_all_points and not run.is_over and not run.is_relaxed:
        relaxed.begin(trainer, pl_module, run)
    # Wait until now: later callbacks save checkpoints at the end of the epoch, which must hold the minimum.
    if run.owes_start and not run.has_all_points and run.solved >= _POINTS:
        extrapolate(trainer, pl_module, run)
    run.owes_start = False
    _set_strength(settings, run)


def see_gradients(settings: Settings, trainer: Trainer, optimizer: Optimizer, run: PathRun) -> None:
    """Add the gradients of the coming step of `optimizer` to the mean, if the path needs them."""
    of_penalty = settings.penalty.run
    if of_penalty is None or (run.search is None and settings.tolerance is None) or run.has_all_points:
        return
    weights = of_penalty.targets.of([optimizer])
    may_skip = state.may_skip_steps(trainer)
    others = others_of(run, optimizer) if run.search is None else []
    scale = state.gradient_scale(trainer, optimizer)
    run.mean.add([*weights, *others], of_penalty.share, scale, may_skip=may_skip)
    if run.search is not None and (dense := [w for w in weights if run.names[w] not in run.search.begun]):
        begun = vanishing(settings.penalty, trainer, run, dense)
        if may_skip and any(math.isnan(strength) for strength in begun.values()):
            return  # fp16 skips this step, because its gradient is not finite
        # This is the first step of the optimizer. From now on, hold its weights at zero.
        run.search.begun |= begun
        with torch.no_grad():
            for weight in dense:
                weight.zero_()
        _set_strength(settings, run)


def end_epoch(
    settings: Settings, trainer: Trainer, pl_module: LightningModule, run: PathRun, *, has_score: bool
) -> bool:
    """Count an epoch, and move on if it completes a strength or the relaxed solution.

    Args:
        settings: The arguments of the path.
        trainer: The trainer.
        pl_module: The module.
        run: The state of the path.
        has_score: Whether the score is known. If not, a complete strength takes one more epoch.

    Returns:
        Whether the result of the path has changed.

    """
    run.owes_end, run.epochs = False, run.epochs + 1
    is_complete = stays_solved = False
    if run.search is not None:
        look(settings, trainer, pl_module, run, run.search)
    elif run.is_relaxed:
        is_complete = run.is_over
    else:
        # Ask for two epochs in a row: weights that oscillate around a minimum may look solved in one.
        was_solved, run.is_solved = run.is_solved, is_solved(settings, trainer, run)
        stays_solved = was_solved and run.is_solved
        is_complete = stays_solved or run.epochs >= settings.epochs
    if is_complete and not has_score:
        run.epochs -= 1
    elif is_complete and run.is_relaxed:
        relaxed.end(trainer, run)
    elif is_complete:
        add_point(settings, trainer, pl_module, run)
        run.solved = run.solved + 1 if stays_solved else 0
        run.position, run.epochs, run.is_solved, run.owes_start = run.position + 1, 0, False, True
    run.mean.clear()
    trainer.should_stop = trainer.should_stop or run.is_over
    return is_complete and has_score


def _set_strength(settings: Settings, run: PathRun) -> None:
    if run.strengths:
        settings.penalty.strength = run.strength
    elif run.search is not None and run.search.begun:
        settings.penalty.strength = min(_HOLDS_AT_ZERO, *(torch.finfo(weight.dtype).max for weight in run.names))
    else:  # with dense weights, a large strength would log a penalty that dwarfs all other values in a chart
        settings.penalty.strength = 0.0
