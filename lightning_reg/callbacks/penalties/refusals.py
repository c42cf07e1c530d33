"""Settings that a penalty cannot or should not work with: an error or a warning before training."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from lightning_reg.callbacks.trainer.refusals import refuse_two_versions
from lightning_reg.functional.proximal.step_size import find_rule, known_optimizers
from lightning_reg.functional.tensors.shards import has_dtensors
from lightning_reg.selection import Weight


def refuse_mode(trainer: Trainer, pl_module: LightningModule, name: str, mode: str, *, elementwise: bool) -> None:
    """Raise if a penalty of this mode cannot reach the weights in this way of training."""
    flat = state.has_flat_shards(trainer)
    reason = ""
    if mode == "loss" and not pl_module.automatic_optimization:
        reason = 'manual optimization, in which one step may have several losses of your own. Use mode="grad"'
    elif mode == "loss" and flat:
        reason = 'FSDP1, which frees the weights before backward. Use mode="grad", or FSDP2 (ModelParallelStrategy)'
    elif flat and not elementwise:
        reason = "FSDP1, which flattens the weights. Use FSDP2 (ModelParallelStrategy)"
    if reason:
        msg = f'{name} with mode="{mode}" does not work with {reason}.'
        raise MisconfigurationException(msg)


def refuse_missing_operator(name: str) -> None:
    """Raise for a penalty without a proximal operator."""
    msg = (
        f'{name} with mode="proximal" needs the method `proximal(weights, factors)`, which applies the proximal'
        ' operator of the penalty to weights. Define it, or use mode="loss" or "grad".'
    )
    raise MisconfigurationException(msg)


def refuse_optimizers(trainer: Trainer, name: str, mode: str, need_one_size: Sequence[Optimizer] = ()) -> None:
    """Raise if an optimizer would not minimise the penalty; `need_one_size` need one step size for each weight."""
    if mode == "proximal":
        _refuse_unknown_step_sizes(trainer, name)
        _refuse_varied_step_sizes(need_one_size, name)
        return
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if any(group.get("line_search_fn") for group in groups):
        # Lightning's closure returns the data loss alone.
        msg = (
            f"{name} does not work with a line search (LBFGS with `line_search_fn`), which reads the loss without the"
            " penalty. Use `line_search_fn=None`, or add the term to the loss in `training_step` with the functions of"
            " `lightning_reg.functional`."
        )
        raise MisconfigurationException(msg)
    if any(group.get("maximize") for group in groups):
        msg = f"{name} does not work with `maximize=True`, which also maximises it. Minimise the negative objective."
        raise MisconfigurationException(msg)


def _refuse_unknown_step_sizes(trainer: Trainer, name: str) -> None:
    for optimizer in trainer.optimizers:
        refuse_two_versions(optimizer, f'{name} with mode="proximal"')
        if find_rule(type(optimizer)) is None:
            msg = (
                f'{name} with mode="proximal" must know how far {type(optimizer).__name__} moves each weight, but knows'
                f" only {', '.join(known_optimizers())}. Register its step sizes with"
                f" `lightning_reg.register_step_size({type(optimizer).__name__}, function)`,"
                ' or use another optimizer, or mode="grad".'
            )
            raise MisconfigurationException(msg)


def _refuse_varied_step_sizes(optimizers: Sequence[Optimizer], name: str) -> None:
    for optimizer in optimizers:
        if (rule := find_rule(type(optimizer))) and rule.varies:
            msg = (
                f'{name} with mode="proximal" needs one step size for all entries of a weight, but'
                f" {type(optimizer).__name__} has one for each. Use SGD, or another optimizer whose step size you tell"
                ' with `lightning_reg.register_step_size`, or mode="grad".'
            )
            raise MisconfigurationException(msg)


def refuse_directions(weights: Iterable[Weight], name: str) -> None:
    """Raise for the directions in weight norm: a direction of zero would make weights NaN."""
    for weight in weights:
        if weight.is_direction:
            msg = (
                f"{name} cannot make entries or groups of {weight.name!r} zero: weight norm divides it by its length to"
                f" compute {weight.plain_name!r}. Remove the weight norm, or leave this part out:"
                f" `select=Select(exclude={weight.name!r})`; its length is a weight by itself."
            )
            raise ValueError(msg)


def refuse_operators_in_sequence(weights: Mapping[str, Sequence[Tensor]]) -> None:
    """Raise if two proximal penalties act on one weight: two operators in sequence do not minimise the sum.

    Args:
        weights: The weights of each proximal penalty to which this applies.

    """
    for (name, own), (other, others) in combinations(weights.items(), 2):
        if not set(own).isdisjoint(others):
            msg = (
                f'{name} and {other} with mode="proximal" act on the same weights, where one proximal step after the'
                " other does not minimise the sum. Select different weights, use ElasticNetPenalty for L1 and L2"
                ' together, or give one of them mode="grad".'
            )
            raise MisconfigurationException(msg)


def warn_of_averaging(trainer: Trainer) -> None:
    """Warn if a callback averages weights over steps: an average is exactly zero only if all its weights were."""
    averaging = state.averaging_callback(trainer)
    if averaging:
        rank_zero_warn(
            f'{averaging} averages weights, so that what mode="proximal" made exactly zero becomes a small number'
            " again. Leave it out. Or start to average after the zeros have settled, and set entries of the average to"
            " zero where the last weights are zero."
        )


def refuse_sharded_loss(loss: Tensor, name: str) -> None:
    """Raise if the loss is a `DTensor`, as of `loss_parallel`."""
    if has_dtensors([loss]):
        msg = f'{name} with mode="loss" does not work with a loss that is a DTensor. Use mode="grad".'
        raise MisconfigurationException(msg)


def warn_of_weight_decay(decays: Mapping[str, Sequence[float]]) -> None:
    """Warn if the optimizer's own decay acts on weights that penalties shrink in the same way.

    Args:
        decays: For each such penalty, the `weight_decay` of every parameter group that holds its weights.

    """
    names = [name for name, values in decays.items() if any(values)]
    if names:
        decay = max(value for values in decays.values() for value in values)
        rank_zero_warn(
            f"{' and '.join(names)} and the optimizer's weight_decay={decay:g} both shrink the same weights."
            " Set weight_decay=0 in the optimizer unless you want both."
        )
