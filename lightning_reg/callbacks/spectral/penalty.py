"""The spectral norm penalty."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Mode, Penalty
from lightning_reg.callbacks.penalties.run import Run
from lightning_reg.callbacks.spectral.kept_state import KeepsState
from lightning_reg.callbacks.spectral.step_norms import StepNorms
from lightning_reg.callbacks.spectral.weights import Norm, add_gradient, layer_of
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.refusals import refuse_weights
from lightning_reg.functional.spectral.followed.gradient import value_at
from lightning_reg.functional.spectral.followed.norms import FollowedNorm
from lightning_reg.functional.spectral.norms import matrix_norm
from lightning_reg.functional.tensors.shards import whole
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select, Weight


@dataclass
class NormsRun(Run):
    """The state of the penalty during one fit, with the norms of its weights."""

    norms: StepNorms = field(default_factory=StepNorms)
    known: dict[Tensor, Weight] = field(default_factory=dict)

    def norms_of(self, weights: Sequence[Tensor]) -> list[FollowedNorm]:
        """Return the norm of each weight, with its gradient in factors."""
        return self.norms.of([self.known[weight] for weight in weights])


@final
class SpectralNormPenalty(Penalty, KeepsState[Run]):
    r"""Add :math:`\lambda \sum_l \sigma(W_l)^2` to the objective: shrink only the largest singular value of a layer.

    :math:`\sigma = u^T W v` is estimated once in each step, from the singular vectors of the last step: from below,
    within 1 % (usually within 0.1 %). The gradient is :math:`2 \sigma u v^T`; for a convolution with `norm="operator"`
    it goes through the map between images. For a matrix, the term is at most :math:`\lambda \sum w^2`, with equality at
    rank one. The norm of a convolution can exceed the 2-norm of its kernel by a factor of up to the square root of the
    number of taps.

    Logged as `reg/penalty/spectral_norm`, in units of the loss, see `Penalty`.

    Args:
        strength: :math:`\lambda`, >= 0. The paper's term is :math:`\frac{\lambda'}{2} \sum_l \sigma(W_l)^2`: for its
            coefficient :math:`\lambda'` pass a strength of :math:`\lambda' / 2`.
        select: Which weights, see `Penalty`. Stacked experts (experts x out x in, in a module that is not a layer of
            torch) are one matrix each, and have a term each.
        norm: For convolutions, `"operator"` is the norm of the map between images of any size, the least upper bound
            with zero padding; `"matrix"` is the norm of the kernel reshaped to a matrix.
        mode: `"loss"` or `"grad"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`.

    Example:
        >>> SpectralNormPenalty(0.01, select="encoder.*", mode="grad")
        SpectralNormPenalty(strength=0.01, select='encoder.*', norm='operator', mode='grad', schedule=None)

    Reference:
        Yoshida & Miyato, Spectral Norm Regularization for Improving the Generalizability of Deep Learning, 2017,
        arXiv:1705.10941.

    """

    def __init__(  # the arguments of every penalty, and one more
        self,
        strength: float,
        *,
        select: str | Sequence[str] | Select | None = None,
        norm: Norm = "operator",
        mode: Mode = "loss",
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(strength, select=select, mode=mode, schedule=schedule)
        self.norm = _checks.one_of("norm", norm, get_args(Norm))

    @property
    @override
    def state_key(self) -> str:
        # Each of several callbacks, for different layers, has its own state.
        return f"{type(self).__qualname__}({self.select!r})"

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the sum of squared norms of plain tensors, exactly; kernels count as matrices."""
        return torch.stack([matrix_norm(whole(weight).flatten(1)).square() for weight in weights]).sum()

    @override
    def value(self, weights: list[Tensor]) -> Tensor:
        known, found = self._norms_run.known, self._norms_run.norms_of(weights)
        norms = [value_at(layer_of(known[weight]), norm) for weight, norm in zip(weights, found, strict=True)]
        # A stack has one norm for each of its matrices.
        return torch.cat([norm.reshape(-1).to(norms[0].device) for norm in norms]).square().sum()

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        run = self._norms_run
        for grad, weight, norm in zip(grads, weights, run.norms_of(weights), strict=True):
            add_gradient(grad, run.known[weight], norm, 2 * factor * norm.sigma)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> NormsRun:
        run = super().make_run(trainer, pl_module)
        known: dict[Tensor, Weight] = {weight.parameter: weight for weight in run.selection.chosen}
        # Not later: FSDP2 replaces parameters of modules once a forward pass has run, and the sanity check runs one.
        refuse_weights([known[weight] for weight in run.targets.of(trainer.optimizers)], type(self).__name__)
        return NormsRun(**vars(run), norms=StepNorms(as_matrices=self.norm == "matrix"), known=known)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is not None and self._saved.get("norm") == self.norm:
            self._norms_run.norms.load(self._saved.get("followed", {}), self._norms_run.known.values())

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._run is not None:
            self._norms_run.norms.forget(self._run.targets.of([optimizer]))

    @override
    def state_of(self, run: Run) -> dict[str, Any]:
        return {"norm": self.norm, "followed": _with_norms(run).norms.state()}

    @property
    def _norms_run(self) -> NormsRun:
        return _with_norms(self._run)


def _with_norms(run: Run | None) -> NormsRun:
    if not isinstance(run, NormsRun):  # formulas are used during `fit` only
        raise TypeError
    return run
