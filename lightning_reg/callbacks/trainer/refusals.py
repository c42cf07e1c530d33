"""Strategies and weights that no callback can work with: refused before training, with the remedy."""

from collections.abc import Sequence

from torch.optim import Optimizer

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer, is_a
from lightning_reg.selection import Weight


def refuse_strategy(trainer: Trainer, name: str) -> None:
    """Raise if the strategy runs the backward pass or the optimizer step itself, instead of Lightning."""
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


def refuse_flat_shards(trainer: Trainer, name: str) -> None:
    """Raise under FSDP1, whose flat shards hold no weight by name."""
    if state.has_flat_shards(trainer):
        msg = f"{name} does not work with FSDP1. Use FSDP2 (ModelParallelStrategy)."
        raise MisconfigurationException(msg)


def refuse_hidden_weights(trainer: Trainer, name: str) -> None:
    """Raise if the strategy stores weights so that a monitor cannot read them whole."""
    strategy = trainer.strategy
    if state.has_flat_shards(trainer) or is_a(strategy, "DeepSpeedStrategy", "XLAStrategy"):
        msg = (
            f"{name} does not support {type(strategy).__name__}, which stores weights in its own shards."
            " Use a single device, 'ddp' or FSDP2 (ModelParallelStrategy)."
        )
        raise MisconfigurationException(msg)


def refuse_two_versions(optimizer: Optimizer, name: str) -> None:
    """Raise for an optimizer that evaluates other weights than it trains, such as the schedule-free ones.

    Its methods `train` and `eval` exchange them. It computes one from the other, and from tensors of its own, so that a
    change of the trained weights reaches the others in part, and not for long.
    """
    if all(callable(getattr(optimizer, method, None)) for method in ("train", "eval")):
        msg = (
            f"{name} does not work with {type(optimizer).__name__}, whose `train()` and `eval()` exchange two versions"
            f" of the weights: what {name} does to one is lost in the other. Use another optimizer. Penalties in"
            ' mode="loss" or "grad" work with it, and so does its own `weight_decay`.'
        )
        raise MisconfigurationException(msg)


def refuse_unless_listed_once(callback: object, listed: Sequence[object]) -> None:
    """Raise if the trainer does not call the hooks of this callback, or calls them twice."""
    count = sum(other is callback for other in listed)
    if count != 1:
        msg = f"{callback!r} must be in `Trainer(callbacks=[...])` exactly once; it is there {count} times."
        raise MisconfigurationException(msg)


def refuse_weights(weights: Sequence[Weight], name: str) -> None:
    """Raise for weights that are complex, or from which a parametrization computes the weight of the layer.

    Raises:
        ValueError: If there is such a weight.

    """
    refuse_computed(weights, name)
    for weight in weights:
        if weight.parameter.is_complex():
            msg = (
                f"{name} takes real weights, but {weight.name!r} is {weight.parameter.dtype}. Leave it out:"
                f" `select=Select(exclude={weight.plain_name!r})`."
            )
            raise ValueError(msg)


def refuse_computed(weights: Sequence[Weight], name: str) -> None:
    """Raise for weights from which a parametrization computes the weight of the layer.

    Raises:
        ValueError: If there is such a weight.

    """
    for weight in weights:
        if weight.is_computed_from:
            msg = (
                f"{name} cannot control {weight.name!r}, from which another parametrization computes the weight of the"
                " layer. Remove that parametrization (weight norm, torch's spectral norm), or leave the weight out:"
                f" `select=Select(exclude={weight.plain_name!r})`."
            )
            raise ValueError(msg)
