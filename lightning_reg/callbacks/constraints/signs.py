"""The constraint on the sign of each entry."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.constraints.base import Constraint
from lightning_reg.callbacks.trainer.step_hooks import Turn
from lightning_reg.functional.tensors.shards import local_parts


@final
class NonNegative(Constraint):
    r"""Keep weights at 0 or above: after each step, :math:`w \leftarrow \max(w, 0)`.

    If all weights of a network are non-negative and its activations increasing, its outputs increase with its inputs.
    A linear model becomes non-negative least squares; together with `L1Penalty(mode="proximal")`, the non-negative
    lasso.

    Logged: nothing during training; TensorBoard's text `reg/setup_constraints` shows what happens to each weight.

    Args:
        select: Which weights, see `Constraint`.

    Raises:
        TypeError: If `select` is of the wrong kind.
        ValueError: See `Constraint`.
        MisconfigurationException: See `Constraint`.

    Example:
        >>> NonNegative(select="head.*")
        NonNegative(select='head.*')

    Reference:
        Keras, `keras.constraints.NonNeg`; Chorowski & Zurada, Learning Understandable Neural Networks with Nonnegative
        Weight Constraints, 2015, doi:10.1109/TNNLS.2014.2310059.

    """

    change = "zeros"
    takes_shards = True
    survives_averaging = True
    turn = Turn.ENTRIES

    @override
    @torch.no_grad()
    def project(self, weights: list[Tensor]) -> None:
        torch._foreach_clamp_min_(local_parts(weights), 0.0)
