"""What no callback can work with, refused before training with the remedy."""

from collections.abc import Sequence

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer, is_a


def refuse_strategy(trainer: Trainer, name: str) -> None:
    """Raise if the strategy takes the backward pass or the optimizer step out of Lightning's hands."""
    strategy = trainer.strategy
    if (
        is_a(strategy, "DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")
        or strategy.handles_gradient_accumulation
    ):
        msg = (
            f"{name} does not support {type(strategy).__name__}, which runs the backward pass or the optimizer step"
            " itself. Use a single device, 'ddp', 'fsdp' or ModelParallelStrategy."
        )
        raise MisconfigurationException(msg)


def refuse_hidden_weights(trainer: Trainer, name: str) -> None:
    """Raise if the strategy keeps the weights where a monitor cannot read them whole."""
    strategy = trainer.strategy
    if state.has_flat_shards(trainer) or is_a(strategy, "DeepSpeedStrategy", "XLAStrategy"):
        msg = (
            f"{name} does not support {type(strategy).__name__}, which keeps the weights in pieces of its own."
            " Use a single device, 'ddp' or FSDP2 (ModelParallelStrategy)."
        )
        raise MisconfigurationException(msg)


def refuse_unless_listed_once(callback: object, listed: Sequence[object]) -> None:
    """Raise if the trainer does not call the hooks of this penalty, or calls them twice."""
    count = sum(other is callback for other in listed)
    if count != 1:
        msg = f"{callback!r} must be in `Trainer(callbacks=[...])` itself, once; it is there {count} times."
        raise MisconfigurationException(msg)
