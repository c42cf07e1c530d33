"""What cannot share a weight with a constraint: refused before the first step. What undoes it later: warned of."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer, rank_zero_warn
from lightning_reg.callbacks.trainer.sharing import may_share


def refuse_shared_weights(constraint: DuringFit[Any], names: Mapping[Tensor, str], others: Sequence[object]) -> None:
    """Raise if another callback changes a weight of `constraint` after steps in a way that one of the two undoes.

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
                    " undoes what the other has reached. Leave the weight out of one: `select=Select(exclude=...)`;"
                    ' of a penalty, mode="grad" does as well.'
                )
                raise MisconfigurationException(msg)


def warn_of_averaging(trainer: Trainer, name: str) -> None:
    """Warn if a callback averages weights over steps: the average does not keep this rule."""
    averaging = state.averaging_callback(trainer)
    if averaging:
        rank_zero_warn(
            f"{averaging} averages weights, and averages of weights that {name} has changed need not keep its rule."
            f" Leave {averaging} out, or put its average through `{name}.project` when it is done."
        )
