"""The base of callbacks that hold the norms of layers at a bound: when they act, and on which weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.spectral.kept_state import KeepsState
from lightning_reg.callbacks.spectral.weights import weights_of_layers
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.guarded_steps import ActsInSteps, Guard
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer
from lightning_reg.callbacks.trainer.plan import Plan, plan_of, publish
from lightning_reg.callbacks.trainer.refusals import (
    refuse_hidden_weights,
    refuse_strategy,
    refuse_unless_listed_once,
    refuse_weights,
)
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from lightning_reg.functional.tensors.weights import check_fits
from lightning_reg.selection import Select, Selection, Weight, as_select, named_weights, select_weights
from lightning_reg.tensorboard import tags

State = Mapping[str, Mapping[str, Tensor]]


class Engine(Protocol):
    """The treatment of weights during one `fit`."""

    def start(self, weights: Iterable[Weight], saved: State) -> None:
        """Take `weights` under control, and continue with weights in `saved`."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Act when the gradients of `optimizer` are complete."""

    def after_step(self, optimizer: Optimizer, moved: AbstractSet[Tensor]) -> None:
        """Act when `optimizer` has made an update; `moved` are the weights that had a gradient before it."""

    def before_backward(self) -> None:
        """Act when a backward pass is about to add to gradients."""

    def stop(self) -> None:
        """Put the weights into their final form."""

    def state(self) -> State:
        """Return the state that `start` needs to continue exactly."""


@dataclass
class Run:
    """The control of the chosen weights during one fit."""

    selection: Selection
    engine: Engine
    steps: AroundSteps
    guard: Guard
    waiting: set[Weight]
    """The weights that have not been trained so far."""

    def plan(self, settings: str, action: Callable[[Weight], str], optimizers: Sequence[Optimizer]) -> Plan:
        """Return what happens to each weight."""
        trained = {weight.parameter for weight in self.guard.trained(optimizers)}
        return plan_of(settings, self.selection, trained, action)

    def take_over(self, saved: State, optimizers: Sequence[Optimizer]) -> None:
        """Take weights of `optimizers` under control that are now trained for the first time."""
        if not self.waiting:
            return
        trained = [weight for weight in self.guard.trained(optimizers) if weight in self.waiting]
        if trained:
            self.waiting -= set(trained)
            self.engine.start(trained, saved)


class SpectralControl(ActsInSteps[Run], KeepsState[Run], ABC):
    """Lets an `Engine` act on the chosen weights, around each optimizer step."""

    changes_before_steps: ClassVar[bool] = False
    """Whether the engine changes weights right before steps, and not only after them."""

    def __init__(self, norm_bound: float, select: str | Sequence[str] | Select | None) -> None:
        super().__init__()
        self.norm_bound = _checks.positive("norm_bound", norm_bound)
        as_select(select)
        self.select = select

    @abstractmethod
    def engine(self) -> Engine:
        """Return the engine for one `fit`."""

    @abstractmethod
    def action(self, weight: Weight) -> str:
        """Return the entry of the plan for a weight."""

    @abstractmethod
    def change(self, weight: Weight) -> Change:
        """Return how a weight is changed after each step."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """The settings for which a saved state is valid."""

    @property
    @override
    def state_key(self) -> str:
        # Each of several callbacks of one class, for different layers, has its own state.
        return f"{type(self).__qualname__}({self.select!r})"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_unless_listed_once(self, _controls(trainer))
        refuse_strategy(trainer, type(self).__name__)
        refuse_hidden_weights(trainer, type(self).__name__)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        # Not later: FSDP2 replaces parameters once a forward pass has run, and the sanity check runs one.
        selection = weights_of_layers(select_weights(named_weights(pl_module), as_select(self.select)), self.select)
        run = self._run_on(selection)
        held = run.guard.held_by(trainer.optimizers)
        refuse_weights(held, type(self).__name__)
        check_fits("norm_bound", self.norm_bound, [weight.parameter for weight in held])
        return run

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in `on_fit_start`: some strategies load the checkpoint after it, and callbacks freeze weights there.
        self._take_over(trainer.optimizers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is None:  # a tuner trains for a moment before `on_fit_start`
            return
        self._take_over(trainer.optimizers)
        controls = _controls(trainer)
        _refuse_shared(controls)
        _refuse_proximal(trainer, self)
        if self is controls[-1]:
            optimizers = trainer.optimizers
            plans = [
                run.plan(repr(control), control.action, optimizers) for control in controls if (run := control.run)
            ]
            publish(trainer, plans, ("weight", "shape", "spectral control"), tags.SPECTRAL_SETUP)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._take_over(trainer.optimizers)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        super().on_before_backward(trainer, pl_module, loss)
        if self._run is not None:
            self._run.engine.before_backward()

    @override
    def follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            self._run.steps.add(trainer.optimizers)

    @override
    def end_run(self, trainer: Trainer, run: Run | None) -> None:
        if run is not None:
            run.steps.remove()
            run.engine.stop()
        super().end_run(trainer, run)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self._run is not None:  # a tuner restores the state from before it
            self._run.steps.remove()
            self._run = self._run_on(self._run.selection)

    def chosen(self) -> dict[Tensor, str]:
        """Return the weights under control in the fit that is running, with their names."""
        return {} if self._run is None else self._run.selection.names

    @override
    def changes(self) -> dict[Tensor, Change]:
        chosen = () if self._run is None else self._run.selection.chosen
        return {weight.parameter: self.change(weight) for weight in chosen}

    def _run_on(self, selection: Selection) -> Run:
        engine, guard = self.engine(), Guard(selection, type(self).__name__, "controlled")

        def after_step(optimizer: Optimizer, moved: AbstractSet[Tensor]) -> None:
            guard.unseen.see(optimizer, has_gradient=bool(moved))
            engine.after_step(optimizer, moved)
            # Users may unfreeze weights after the batch has begun, and freeze them again before the next one.
            self._take_over([optimizer])

        name = type(self).__name__ if self.changes_before_steps else None
        steps = AroundSteps(after_step, engine.before_step, name=name)
        return Run(selection, engine, steps, guard, set(selection.chosen))

    @override
    def state_of(self, run: Run) -> dict[str, Any]:
        return {"settings": self.settings, "weights": run.engine.state()}

    def _take_over(self, optimizers: Sequence[Optimizer]) -> None:
        if self._run is not None:
            is_fit = self._saved.get("settings") == self.settings
            self._run.take_over(self._saved.get("weights", {}) if is_fit else {}, optimizers)


def _controls(trainer: Trainer) -> list[SpectralControl]:
    return state.callbacks_of(trainer, SpectralControl)  # type: ignore[type-abstract]  # mypy wants no abstract class here


def _refuse_shared(controls: Sequence[SpectralControl]) -> None:
    """Raise if two callbacks hold one weight at a bound."""
    owners: dict[Tensor, SpectralControl] = {}
    for control in controls:
        for parameter, name in control.chosen().items():
            other = owners.setdefault(parameter, control)
            if other is not control:
                msg = (
                    f"{name!r} is chosen by both {other!r} and {control!r}, but can have only one bound."
                    " Leave it out of one: `select=Select(exclude=...)`."
                )
                raise MisconfigurationException(msg)


def _refuse_proximal(trainer: Trainer, control: SpectralControl) -> None:
    """Raise if a proximal penalty acts on the same weights: both change them right after the optimizer's update."""
    for penalty in state.callbacks_of(trainer, Penalty):  # type: ignore[type-abstract]  # mypy wants no abstract class here
        if penalty.mode != "proximal":
            continue
        others = penalty.chosen()
        for parameter, name in control.chosen().items():
            if parameter in others:
                msg = (
                    f"{penalty!r} and {control!r} both change {name!r} after the optimizer's step: the second"
                    ' undoes the change of the first. Use mode="grad", or leave the weight out of one:'
                    " `select=Select(exclude=...)`."
                )
                raise MisconfigurationException(msg)
