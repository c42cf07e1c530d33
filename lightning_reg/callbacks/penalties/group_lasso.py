"""The group lasso as a penalty: whole units go to zero together."""

from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Mode, Penalty
from lightning_reg.functional import group_lasso, group_soft_threshold
from lightning_reg.functional.penalties.group_lasso import add_group_gradient_
from lightning_reg.functional.proximal.groups import group_thresholds
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select


@final
class GroupLassoPenalty(Penalty):
    r"""Add :math:`\lambda \sum_g \sqrt{n_g} \|w_g\|_2` to the objective: whole units go to zero together.

    A group is what one index along `dim` of a weight holds, with :math:`n_g` entries: units whose group is zero can be
    taken out of the network. Only `mode="proximal"` makes groups exactly zero. Logged as `reg/penalty/group_lasso`.

    Args:
        strength: :math:`\lambda`, >= 0.
        dim: 0 for the weights into each output unit or filter, 1 for those out of each input unit or channel; the other
            way round for transposed convolutions.
        select: Which weights, see `Penalty`.
        mode: `"loss"`, `"grad"` or `"proximal"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`, or a selected weight has no dimension `dim`.

    Example:
        >>> GroupLassoPenalty(1e-3, mode="proximal")
        GroupLassoPenalty(strength=0.001, dim=0, select=None, mode='proximal', schedule=None)

    Reference:
        Yuan & Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006,
        doi:10.1111/j.1467-9868.2005.00532.x; for networks: Scardapane et al., Group Sparse Regularization for Deep
        Neural Networks, 2017, arXiv:1607.00485.

    """

    def __init__(
        self,
        strength: float,
        dim: int = 0,
        *,
        select: str | Sequence[str] | Select | None = None,
        mode: Mode = "loss",
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(strength, select=select, mode=mode, schedule=schedule)
        self.dim = _checks.integer("dim", dim)

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return group_lasso(weights, dim=self.dim)

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        add_group_gradient_(grads, weights, factor, dim=self.dim)

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        group_soft_threshold(weights, factors, dim=self.dim, inplace=True)

    @override
    def vanishing_strengths(self, weights: list[Tensor], step_sizes: Sequence[float | Tensor]) -> list[Tensor]:
        return group_thresholds(weights, step_sizes, dim=self.dim)

    @property
    @override
    def unit_dim(self) -> int | None:
        return self.dim
