"""Callbacks that cannot share a weight with a constraint raise an error; weight averaging raises a warning."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer, rank_zero_warn
from lightning_reg.callbacks.trainer.sharing import may_share


def refuse_undone_changes(constraint: DuringFit[Any], names: Mapping[Tensor, str], others: Sequence[object]) -> None:
    """Raise if another callback also changes a weight of `constraint` after steps, and one undoes the other's change.

    Args:
        constraint: The constraint.
        names: Its weights.
        others: The callbacks of the trainer.

    """
    own = constraint.changes()
    for other in others:
        if other is constraint or not isinstance(other, DuringFit):
            continue
        for weight, change in other.changes().items():
            if weight in own and not may_share(own[weight], change):
                msg = (
                    f"{constraint!r} and {other!r} both change {names[weight]!r} after the optimizer's step, and one"
                    " undoes the change of the other. Leave the weight out of one: `select=Select(exclude=...)`."
                    ' For a penalty, `mode="grad"` also works.'
                )
                raise MisconfigurationException(msg)


def warn_of_averaging(trainer: Trainer, name: str) -> None:
    """Warn if a callback averages weights over steps, because the average need not keep the rule."""
    averaging = state.averaging_callback(trainer)
    if averaging:
        rank_zero_warn(
            f"{averaging} averages weights, but an average of weights that keep the rule of {name} need not keep it."
            f" Leave {averaging} out, or apply `{name}.project` to its final average."
        )
