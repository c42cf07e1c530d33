"""What callbacks share that hold the norms of layers at a bound: when they act, on which weights, until when."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.spectral.weights import refuse_weights
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.plan import Plan, publish
from lightning_reg.callbacks.trainer.refusals import refuse_hidden_weights, refuse_strategy, refuse_unless_listed_once
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from lightning_reg.selection import Select, Selection, Weight, as_select, named_weights, select_weights
from lightning_reg.tensorboard import tags

State = Mapping[str, Mapping[str, Tensor]]


class Engine(Protocol):
    """What is done to weights during one `fit`."""

    def start(self, weights: Iterable[Weight], saved: State) -> None:
        """Take `weights` under control, and go on with those that are among `saved`."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Act when the gradients of `optimizer` are complete."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Act when `optimizer` has made an update."""

    def stop(self) -> None:
        """Leave the weights as they are to stay."""

    def state(self) -> State:
        """Return what `start` needs to go on exactly."""


@dataclass
class Run:
    """What controls the chosen weights during one fit."""

    selection: Selection
    engine: Engine
    steps: AroundSteps
    waiting: list[Weight]
    """Those that have not been trained so far."""

    def plan(self, settings: str, action: Callable[[Weight], str]) -> Plan:
        """Return what happens to each weight."""
        return Plan(
            settings,
            shapes={weight.name: weight.shape for weight in self.selection.weights},
            actions={
                weight.name: action(weight) + ("" if weight.parameter.requires_grad else " (not trained at the moment)")
                for weight in self.selection.chosen
            },
            left_out=self.selection.left_out,
        )

    def take_over(self, saved: State) -> None:
        """Take the weights under control that are trained now, for the first time."""
        trained = [weight for weight in self.waiting if weight.parameter.requires_grad]
        if trained:
            self.waiting = [weight for weight in self.waiting if not weight.parameter.requires_grad]
            self.engine.start(trained, saved)


class SpectralControl(DuringFit[Run], ABC):
    """Has an `Engine` act on the chosen weights, around each optimizer step."""

    def __init__(self, norm_bound: float, select: str | Sequence[str] | Select | None) -> None:
        super().__init__()
        self.norm_bound = _checks.positive("norm_bound", norm_bound)
        as_select(select)
        self.select = select
        self._saved: dict[str, Any] = {}
        """The state of the run before, or of a checkpoint."""

    @abstractmethod
    def engine(self) -> Engine:
        """Return what acts during one `fit`."""

    @abstractmethod
    def action(self, weight: Weight) -> str:
        """Return what the plan says of a weight."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What a saved state is good for: with other settings it is of no use."""

    @property
    @override
    def state_key(self) -> str:
        # Several with one class, for different layers, have a state each.
        return f"{type(self).__qualname__}({self.select!r})"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_unless_listed_once(self, _controls(trainer))
        refuse_strategy(trainer, type(self).__name__)
        refuse_hidden_weights(trainer, type(self).__name__)
        self._saved = {}  # of the run before

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        # Not later: FSDP2 replaces parameters once a forward pass has run, and the sanity check runs one.
        selection = select_weights(named_weights(pl_module), as_select(self.select))
        refuse_weights(selection.chosen, type(self).__name__)
        return self._run_on(selection)

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in `on_fit_start`: some strategies load the checkpoint after it, and callbacks freeze weights there.
        self._take_over()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:  # a tuner trains for a moment before `on_fit_start`
            return
        self._take_over()
        self._run.steps.add(trainer.optimizers)
        controls = _controls(trainer)
        _refuse_shared(controls)
        _refuse_proximal(trainer, self)
        if self is controls[-1]:
            plans = [run.plan(repr(control), control.action) for control in controls if (run := control.run)]
            publish(trainer, plans, ("weight", "shape", "spectral control"), tags.SPECTRAL_SETUP)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._take_over()

    @override
    def end_run(self, trainer: Trainer, run: Run | None) -> None:
        if run is not None:
            run.steps.remove()
            run.engine.stop()
            self._saved = self._state_of(run)

    @override
    def state_dict(self) -> dict[str, Any]:
        # After `fit`, what was at its end: the trainer may save a checkpoint then.
        return self._saved if self._run is None else self._state_of(self._run)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict
        if self._run is not None:  # a tuner puts back what was before it
            self._run.steps.remove()
            self._run = self._run_on(self._run.selection)

    def chosen(self) -> dict[Tensor, str]:
        """Return the weights under control in the fit that is running, with their names."""
        return {} if self._run is None else {weight.parameter: weight.name for weight in self._run.selection.chosen}

    def _run_on(self, selection: Selection) -> Run:
        engine = self.engine()
        return Run(selection, engine, AroundSteps(engine.after_step, engine.before_step), list(selection.chosen))

    def _state_of(self, run: Run) -> dict[str, Any]:
        return {"settings": self.settings, "weights": run.engine.state()}

    def _take_over(self) -> None:
        if self._run is not None and self._run.waiting:
            is_fit = self._saved.get("settings") == self.settings
            self._run.take_over(self._saved["weights"] if is_fit else {})


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
                    f"{name!r} is chosen by both {other!r} and {control!r}, and can have one bound only."
                    " Leave it out of one: `select=Select(exclude=...)`."
                )
                raise MisconfigurationException(msg)


def _refuse_proximal(trainer: Trainer, control: SpectralControl) -> None:
    """Raise if a proximal penalty acts on the same weights, which both change right after the optimizer's update."""
    for penalty in state.callbacks_of(trainer, Penalty):  # type: ignore[type-abstract]  # mypy wants no abstract class here
        if penalty.mode != "proximal":
            continue
        others = penalty.chosen()
        for parameter, name in control.chosen().items():
            if parameter in others:
                msg = (
                    f"{penalty!r} and {control!r} both change {name!r} after the optimizer's step: the second"
                    ' undoes what the first has reached. Use mode="grad", or leave the weight out of one:'
                    " `select=Select(exclude=...)`."
                )
                raise MisconfigurationException(msg)
