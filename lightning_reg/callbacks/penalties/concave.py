"""The minimax concave penalty: zeros like L1, without shrinking large weights."""

from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Mode, Penalty
from lightning_reg.callbacks.penalties.run import Run
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.functional import mcp
from lightning_reg.functional.penalties.elementwise import add_elementwise_gradient_
from lightning_reg.functional.proximal.concave import shrink_to_zero_or_nothing_
from lightning_reg.functional.proximal.optimality import elementwise_residual
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select


@final
class MCPPenalty(Penalty):
    r"""Add the minimax concave penalty to the objective: zeros like L1, but large weights as without a penalty.

    With :math:`l = s(t) \lambda` it is the sum over entries of :math:`l |w| - w^2 / (2 \gamma)` if
    :math:`|w| \le \gamma l`, and of :math:`\gamma l^2 / 2` otherwise. So the schedule also changes the distance from
    zero at which the penalty becomes constant. It is not convex: the minimum found may depend on the initial weights.

    With `mode="proximal"` entries become exactly zero. Entries between 0 and :math:`\gamma l` settle if the optimizer's
    step size, lr / (1 - momentum) for SGD, is below :math:`\gamma` times 1 - momentum. Larger step sizes, as with Adam
    for entries with small gradients, drive them to 0 or beyond :math:`\gamma l`; for step sizes from :math:`\gamma` on,
    the operator has no values in between. `reg/optimality/mcp` shows whether they have settled; a larger :math:`\gamma`
    helps.
    Logged as `reg/penalty/mcp`, see `Penalty`.

    Args:
        strength: :math:`\lambda`, >= 0: near zero the penalty acts like an `L1Penalty` of this strength.
        gamma: :math:`\gamma`, > 0: weights of :math:`\gamma l` and more are left alone. A large :math:`\gamma` gives
            L1.
        select: Which weights, see `Penalty`.
        mode: `"loss"`, `"grad"` or `"proximal"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind; when training starts, if a weight is complex.
        ValueError: If an argument is out of range, see `Penalty`.

    Example:
        >>> MCPPenalty(1e-3, mode="proximal")
        MCPPenalty(strength=0.001, gamma=3.0, select=None, mode='proximal', schedule=None)

    Reference:
        Zhang, Nearly Unbiased Variable Selection under Minimax Concave Penalty, 2010, arXiv:1002.4734.

    """

    elementwise = True
    keeps_zeros = True

    def __init__(
        self,
        strength: float,
        gamma: float = 3.0,
        *,
        select: str | Sequence[str] | Select | None = None,
        mode: Mode = "loss",
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(strength, select=select, mode=mode, schedule=schedule)
        self.gamma = _checks.positive("gamma", gamma)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        run = super().make_run(trainer, pl_module)
        for weight in run.selection.chosen:
            if weight.parameter.is_complex():
                msg = (
                    f"MCPPenalty takes real weights, but {weight.name!r} is {weight.parameter.dtype}. Leave it out with"
                    " `select`, or store its parts as real weights."
                )
                raise TypeError(msg)
        return run

    @property
    def _bound(self) -> float:
        """The least size of weights that are left alone; it is the gamma of the term divided by the strength."""
        return self.gamma * self.current_strength

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        value = mcp(weights, self.current_strength, self.gamma)
        return value / self.current_strength if self.current_strength else value

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        if self._bound:
            add_elementwise_gradient_(grads, weights, l1=factor, l2=-factor / (2 * self._bound))

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        shrink_to_zero_or_nothing_(weights, factors, self._bound)

    @override
    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        return elementwise_residual(weights, grads, l1=1.0, l2=-1 / (2 * self._bound))
