"""The group lasso as a penalty: whole units go to zero together."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Mode, Penalty
from lightning_reg.functional import group_lasso, group_soft_threshold
from lightning_reg.functional.penalties.group_lasso import add_group_gradient_
from lightning_reg.functional.proximal.groups import group_thresholds
from lightning_reg.functional.proximal.optimality import group_residual, largest_residual
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select


@final
class GroupLassoPenalty(Penalty):
    r"""Add :math:`\lambda \sum_g \sqrt{n_g} \|w_g\|_2` to the objective: whole units go to zero together.

    A group is the slice of a weight at one index along `dim`, with :math:`n_g` entries. Units whose group is zero can
    be removed from the network. Only `mode="proximal"` makes groups exactly zero. Logged as `reg/penalty/group_lasso`.

    Args:
        strength: :math:`\lambda`, >= 0.
        dim: 0 for the weights into each output unit or filter, 1 for the weights out of each input unit or channel. The
            layout does not matter, also in transposed convolutions, in `Conv1D` of transformers and in your own layers
            after `register_layer`. The output units of an embedding are its rows. If channels come in groups, one slice
            has a channel of each group. In a parameter that sits in no layer, `dim` is the dimension of the tensor.
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

    keeps_zeros = True

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
    def value(self, weights: list[Tensor]) -> Tensor:
        terms = [group_lasso([weights[i] for i in own], dim=dim) for dim, own in self._by_dim(weights).items()]
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        for dim, own in self._by_dim(weights).items():
            add_group_gradient_([grads[i] for i in own], [weights[i] for i in own], factor, dim=dim)

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        self.proximal_of(weights)(weights, factors)

    @override
    def proximal_of(self, weights: list[Tensor]) -> Callable[[list[Tensor], list[float | Tensor]], None]:
        positions = self._by_dim(weights)

        def shrink(copies: list[Tensor], factors: list[float | Tensor]) -> None:
            for dim, own in positions.items():
                group_soft_threshold([copies[i] for i in own], [factors[i] for i in own], dim=dim, inplace=True)

        return shrink

    @override
    def vanishing_strengths(self, weights: list[Tensor], step_sizes: Sequence[float | Tensor]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for dim, own in self._by_dim(weights).items():
            some = group_thresholds([weights[i] for i in own], [step_sizes[i] for i in own], dim=dim)
            found.update(zip(own, some, strict=True))
        return [found[i] for i in range(len(weights))]

    @override
    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        return largest_residual(
            [
                group_residual([weights[i] for i in own], [grads[i] for i in own], dim=dim)
                for dim, own in self._by_dim(weights).items()
            ]
        )

    def _by_dim(self, weights: Sequence[Tensor]) -> dict[int, list[int]]:
        """Return the positions of the weights whose units lie along one dimension, for each such dimension."""
        positions: dict[int, list[int]] = {}
        dims = self.unit_dims(weights) or {}
        for position, weight in enumerate(weights):
            positions.setdefault(dims[weight], []).append(position)
        return positions

    @property
    @override
    def unit_dim(self) -> int | None:
        return self.dim
