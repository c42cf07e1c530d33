"""The penalty on the distance of each layer's rows from orthonormal ones: the layer keeps lengths."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Mode
from lightning_reg.callbacks.spectral.matrix_penalty import MatrixPenalty
from lightning_reg.functional.spectral.orthogonality import orthogonality
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select


@final
class OrthogonalPenalty(MatrixPenalty):
    r"""Add :math:`\lambda \sum_l \|G_l - I\|_F^2` to the objective: layers that keep lengths.

    W is the kernel with dimension `dim` first and the others flattened; stacked experts are one matrix each. G is the
    Gram matrix of its smaller side, :math:`W W^T` or :math:`W^T W`, so the term is zero where all singular values are
    1. The gradient of a layer with more columns than rows is :math:`4 (W W^T - I) W`. Logged as
    `reg/penalty/orthogonal`, in units of the loss, see `Penalty`.

    Args:
        strength: :math:`\lambda`, >= 0.
        dim: 0 for one row per output unit or filter, 1 for one row per input unit or channel, whatever the layer's
            layout, as in `GroupLassoPenalty`. For a matrix, both give the same term.
        select: Which weights, see `Penalty`. Each needs at least two dimensions.
        mode: `"loss"` or `"grad"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`, or a selected weight has fewer than two dimensions,
            no dimension `dim`, or is computed by a parametrization.

    Example:
        >>> OrthogonalPenalty(1e-4, select="encoder.*", mode="grad")
        OrthogonalPenalty(strength=0.0001, dim=0, select='encoder.*', mode='grad', schedule=None)

    Reference:
        Brock, Lim, Ritchie & Weston, Neural Photo Editing with Introspective Adversarial Networks, 2017,
        arXiv:1609.07093; Bansal, Chen & Wang, Can We Gain More from Orthogonality Regularizations in Training Deep
        CNNs?, 2018, arXiv:1810.09102.

    """

    def __init__(  # the arguments of every penalty, and `dim`
        self,
        strength: float,
        *,
        dim: int = 0,
        select: str | Sequence[str] | Select | None = None,
        mode: Mode = "loss",
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(strength, select=select, mode=mode, schedule=schedule)
        self.dim = _checks.integer("dim", dim)

    @override
    def term(self, matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Callable[[], Tensor]]:
        return orthogonality(matrix)
