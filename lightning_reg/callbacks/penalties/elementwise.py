"""The penalties that are sums over single entries. Each is a formula; `Penalty` brings it to the weights."""

from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Mode, Penalty
from lightning_reg.functional import elastic_net, l1_norm, squared_l2_norm
from lightning_reg.functional.penalties.elementwise import add_elementwise_gradient_
from lightning_reg.functional.proximal.elementwise import elastic_net_prox, soft_threshold, vanishing_factors
from lightning_reg.functional.proximal.optimality import elementwise_residual
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select


@final
class L1Penalty(Penalty):
    r"""Add :math:`\lambda \sum |w|` to the objective: a Laplace prior, which selects features.

    The subgradient at 0 is 0. Gradient steps overshoot zero, so weights never reach it; with `mode="proximal"` they
    become exactly zero. Logged as `reg/penalty/l1`, see `Penalty`.

    Args:
        strength: :math:`\lambda`, >= 0. The same as `alpha` of `sklearn.linear_model.Lasso` if the loss is half the
            mean squared error.
        select: Which weights, see `Penalty`.
        mode: `"loss"`, `"grad"` or `"proximal"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`.

    Example:
        >>> L1Penalty(1e-4, select=["encoder.*", "head.*"])
        L1Penalty(strength=0.0001, select=['encoder.*', 'head.*'], mode='loss', schedule=None)

    Reference:
        Tibshirani, Regression Shrinkage and Selection via the Lasso, 1996, doi:10.1111/j.2517-6161.1996.tb02080.x.

    """

    elementwise = True
    keeps_zeros = True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return l1_norm(weights)

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        add_elementwise_gradient_(grads, weights, l1=factor)

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        soft_threshold(weights, factors, inplace=True)

    @override
    def vanishing_strengths(self, weights: list[Tensor], step_sizes: Sequence[float | Tensor]) -> list[Tensor]:
        return vanishing_factors(weights, step_sizes)

    @override
    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        return elementwise_residual(weights, grads, l1=1.0)

    @property
    @override
    def exact_in_any_company(self) -> bool:
        return True


@final
class L2Penalty(Penalty):
    r"""Add :math:`\lambda \sum w^2` to the objective: a Gaussian prior, which shrinks without zeros.

    With SGD this equals `weight_decay` of :math:`2\lambda`. With Adam it differs from AdamW's decay: Adam divides the
    penalty's gradient by the root of its second moment, but AdamW's decay is not divided. Logged as `reg/penalty/l2`,
    see `Penalty`.

    Args:
        strength: :math:`\lambda`, >= 0.
        select: Which weights, see `Penalty`.
        mode: `"loss"`, `"grad"` or `"proximal"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`.

    Example:
        >>> L2Penalty(1e-4, mode="grad")
        L2Penalty(strength=0.0001, select=None, mode='grad', schedule=None)

    Reference:
        Hoerl & Kennard, Ridge Regression, 1970, doi:10.1080/00401706.1970.10488634; for Adam: Loshchilov & Hutter,
        Decoupled Weight Decay Regularization, 2019, arXiv:1711.05101.

    """

    elementwise = True
    keeps_zeros = True

    @property
    @override
    def overlaps_weight_decay(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return squared_l2_norm(weights)

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        add_elementwise_gradient_(grads, weights, l2=factor)

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        elastic_net_prox(weights, [2 * factor for factor in factors], l1_ratio=0.0, inplace=True)

    @override
    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        return elementwise_residual(weights, grads, l1=0.0, l2=1.0)


@final
class ElasticNetPenalty(Penalty):
    r"""Add :math:`\alpha (\rho \sum |w| + \frac{1 - \rho}{2} \sum w^2)` to the objective, as scikit-learn does.

    Args:
        alpha: Strength :math:`\alpha` of the whole term, >= 0. The same as in `sklearn.linear_model.ElasticNet` if the
            loss is half the mean squared error. Logged as `reg/penalty/elastic_net`, see `Penalty`.
        l1_ratio: Share :math:`\rho` of the 1-norm, in [0, 1].
        select: Which weights, see `Penalty`.
        mode: `"loss"`, `"grad"` or `"proximal"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`.

    Example:
        >>> ElasticNetPenalty(1e-3, l1_ratio=0.7)
        ElasticNetPenalty(alpha=0.001, l1_ratio=0.7, select=None, mode='loss', schedule=None)

    Reference:
        Zou & Hastie, Regularization and Variable Selection via the Elastic Net, 2005,
        doi:10.1111/j.1467-9868.2005.00503.x.

    """

    elementwise = True
    keeps_zeros = True

    def __init__(
        self,
        alpha: float,
        l1_ratio: float = 0.5,
        *,
        select: str | Sequence[str] | Select | None = None,
        mode: Mode = "loss",
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(_checks.non_negative("alpha", alpha), select=select, mode=mode, schedule=schedule)
        self.l1_ratio = _checks.in_range("l1_ratio", l1_ratio, 0, 1)

    @property
    def alpha(self) -> float:
        """Strength of the whole term."""
        return self.strength

    @property
    @override
    def overlaps_weight_decay(self) -> bool:
        return self.l1_ratio < 1

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return elastic_net(weights, l1_ratio=self.l1_ratio)

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        add_elementwise_gradient_(grads, weights, l1=factor * self.l1_ratio, l2=factor * (1 - self.l1_ratio) / 2)

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        elastic_net_prox(weights, factors, l1_ratio=self.l1_ratio, inplace=True)

    @override
    def vanishing_strengths(self, weights: list[Tensor], step_sizes: Sequence[float | Tensor]) -> list[Tensor]:
        return vanishing_factors(weights, step_sizes, self.l1_ratio)

    @property
    @override
    def has_vanishing_strengths(self) -> bool:
        return self.l1_ratio > 0

    @override
    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        return elementwise_residual(weights, grads, l1=self.l1_ratio, l2=(1 - self.l1_ratio) / 2)
