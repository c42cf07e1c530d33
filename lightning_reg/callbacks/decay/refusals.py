"""Optimizers and callbacks that weight decay cannot work with: refused before the first step, with the remedy."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_reg.callbacks.trainer.packages import MisconfigurationException
from lightning_reg.selection import Selection


def refuse_lbfgs(optimizers: Sequence[Optimizer]) -> None:
    """Raise for LBFGS, which updates several times in a step."""
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        msg = (
            "WeightDecay does not work with LBFGS: LBFGS updates several times in a step from differences of gradients,"
            " and a decay in between would falsify them. Use L2Penalty, or another optimizer."
        )
        raise MisconfigurationException(msg)


def refuse_missing_rate(optimizers: Sequence[Optimizer], names: Mapping[Tensor, str]) -> None:
    """Raise if a parameter group with a weight of `names` has no learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            name = next((names[weight] for weight in group["params"] if weight in names), None)
            if group.get("lr") is None and name is not None:
                kind = type(optimizer).__name__
                msg = (
                    f"WeightDecay takes the learning rate from `lr` of the parameter group, but {kind} has none for"
                    f" {name!r}. Pass `lr` to {kind}, use the optimizer's own `weight_decay`, or L2Penalty."
                )
                raise MisconfigurationException(msg)


def refuse_decay_of_optimizers(optimizers: Sequence[Optimizer], names: Mapping[Tensor, str]) -> None:
    """Raise if an optimizer decays a weight of `names` itself."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            shared = [names[weight] for weight in group["params"] if weight in names]
            if group.get("weight_decay") and shared:
                kind = type(optimizer).__name__
                msg = (
                    f"{kind} has weight_decay={group['weight_decay']:g} for {shared[0]!r}, which WeightDecay shrinks"
                    f" too. The weight would decay twice. Pass `weight_decay=0` to {kind}, or leave the weight out of"
                    " WeightDecay: `select=Select(exclude=...)`."
                )
                raise MisconfigurationException(msg)


def refuse_two_callbacks(decays: Sequence[tuple[object, Selection]]) -> None:
    """Raise if two callbacks decay one weight."""
    for (first, one), (second, other) in combinations(decays, 2):
        chosen = one.names
        for weight, name in other.names.items():
            if weight in chosen:
                msg = (
                    f"{name!r} is decayed by both {first!r} and {second!r}."
                    " Leave it out of one: `select=Select(exclude=...)`."
                )
                raise MisconfigurationException(msg)
