"""The base of callbacks that act inside optimizer steps: they follow the optimizers, and report missed steps."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.held_weights import HeldWeights, has_gradient
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.refusals import refuse_two_versions
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from lightning_reg.callbacks.trainer.unseen_steps import UnseenSteps
from lightning_reg.selection import Selection, Weight


class Guard:
    """Tracks the optimizers during one fit, so that a callback does not silently miss a step or a weight.

    Args:
        selection: The weights of the callback.
        name: The name of the callback.
        treatment: Its effect on the weights as a participle, such as "controlled".

    """

    def __init__(self, selection: Selection, name: str, treatment: str) -> None:
        self._chosen = selection.chosen
        self.held = HeldWeights((weight.parameter for weight in selection.weights), f"{treatment} by {name}")
        self.unseen = UnseenSteps(name)

    def of(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the chosen weights that `optimizer` holds."""
        return [weight.parameter for weight in self.held_by([optimizer])]

    def held_by(self, optimizers: Sequence[Optimizer]) -> list[Weight]:
        """Return the chosen weights that `optimizers` hold, frozen or not."""
        held = self.held.of(optimizers)
        return [weight for weight in self._chosen if weight.parameter in held]

    def trained(self, optimizers: Sequence[Optimizer]) -> list[Weight]:
        """Return the chosen weights that `optimizers` hold and that are not frozen."""
        return [weight for weight in self.held_by(optimizers) if weight.parameter.requires_grad]


class Guarded(Protocol):
    """A run that has a guard, and acts around steps once it follows optimizers."""

    guard: Guard

    @property
    def steps(self) -> AroundSteps | None:
        """Its hooks."""


GuardedT = TypeVar("GuardedT", bound=Guarded)


class ActsInSteps(DuringFit[GuardedT]):
    """A callback that acts inside each `Optimizer.step`, and refuses a run whose steps it does not see.

    A subclass acts from `follow` on, and reports each step to `run.guard.unseen`.
    """

    def follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, act in the steps of `trainer.optimizers`, which are new, and of no others."""
        raise NotImplementedError

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._refuse_optimizers(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._run is None:
            return
        guard, optimizers = self._run.guard, trainer.optimizers
        if self._run.steps is not None:
            self._run.steps.rest()
        guard.held.of(optimizers)  # warns of parameters that have joined
        if guard.unseen.meets(optimizers):
            self._refuse_optimizers(trainer)
            self.follow(trainer, pl_module)
            guard.unseen.remember(weight for optimizer in optimizers for weight in guard.of(optimizer))

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._run is not None:
            self._run.guard.unseen.backward()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._run is not None and state.may_skip_steps(trainer):
            self._run.guard.unseen.see(optimizer, has_gradient=has_gradient([optimizer]))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            guard = self._run.guard
            guard.unseen.refuse({optimizer: guard.of(optimizer) for optimizer in trainer.optimizers})

    def _refuse_optimizers(self, trainer: Trainer) -> None:
        for optimizer in trainer.optimizers:
            if self._run is not None and self._run.guard.of(optimizer):
                refuse_two_versions(optimizer, type(self).__name__)
