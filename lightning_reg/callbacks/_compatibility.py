"""What a penalty cannot work with, and what it should not be used beside: refused or warned of before training."""

from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities import rank_zero_warn

from lightning_reg.callbacks import _trainer


def refuse_strategy(trainer: Trainer, name: str) -> None:
    """Raise if the strategy takes the backward pass or the optimizer step out of Lightning's hands."""
    strategy = trainer.strategy
    if (
        isinstance(strategy, (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy))
        or strategy.handles_gradient_accumulation
    ):
        msg = (
            f"{name} does not support {type(strategy).__name__}, which runs the backward pass or the optimizer step"
            " itself. Use a single device, 'ddp', 'fsdp' or ModelParallelStrategy."
        )
        raise MisconfigurationException(msg)


def refuse_mode(trainer: Trainer, pl_module: LightningModule, name: str, mode: str, *, elementwise: bool) -> None:
    """Raise if a penalty of this mode cannot reach the weights in this way of training."""
    flat = _trainer.has_flat_shards(trainer)
    reason = ""
    if mode == "loss" and not pl_module.automatic_optimization:
        reason = 'manual optimization, where the loss is your own and a step may have several. Use mode="grad"'
    elif mode == "loss" and flat:
        reason = 'FSDP1, which frees the weights before backward. Use mode="grad", or FSDP2 (ModelParallelStrategy)'
    elif flat and not elementwise:
        reason = "FSDP1, which flattens the weights. Use FSDP2 (ModelParallelStrategy)"
    if reason:
        msg = f'{name} with mode="{mode}" does not work with {reason}.'
        raise MisconfigurationException(msg)


def refuse_line_search(trainer: Trainer, name: str) -> None:
    """Raise if an optimizer compares values of the objective: Lightning's closure returns the data loss alone."""
    if any(group.get("line_search_fn") for optimizer in trainer.optimizers for group in optimizer.param_groups):
        msg = (
            f"{name} does not work with a line search (LBFGS with `line_search_fn`), which reads the loss without the"
            " penalty. Use `line_search_fn=None`, or add the term to the loss in `training_step` with the functions of"
            " `lightning_reg.functional`."
        )
        raise MisconfigurationException(msg)


def warn_of_weight_decay(decays: Iterable[float], name: str) -> None:
    """Warn if the optimizer's own decay acts on weights that a penalty shrinks in the same way."""
    decay = max(decays, default=0.0)
    if decay:
        rank_zero_warn(
            f"{name} and the optimizer's weight_decay={decay:g} both shrink the same weights."
            " Set weight_decay=0 in the optimizer unless you want both."
        )
