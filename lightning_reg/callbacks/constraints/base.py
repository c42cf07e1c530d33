"""The abstract constraint: a rule for weights, restored after each optimizer step, in every way of training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.constraints.refusals import refuse_undone_changes, warn_of_averaging
from lightning_reg.callbacks.constraints.run import Run
from lightning_reg.callbacks.trainer import progress, state
from lightning_reg.callbacks.trainer.guarded_steps import ActsInSteps, Guard
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.plan import publish
from lightning_reg.callbacks.trainer.refusals import (
    refuse_hidden_weights,
    refuse_strategy,
    refuse_unless_listed_once,
    refuse_weights,
)
from lightning_reg.callbacks.trainer.settings import settings_of
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps, Turn
from lightning_reg.callbacks.trainer.timetable import Timetable
from lightning_reg.schedules import Schedule
from lightning_reg.selection import Select, as_select, named_weights, select_weights
from lightning_reg.tensorboard import tags


class Constraint(ActsInSteps[Run], ABC):
    r"""A rule that weights keep: after each optimizer step, :math:`w \leftarrow P(w)`; subclass it for your own.

    A subclass defines `project`, which is :math:`P` and changes weights in place. It is called right after each step
    that an optimizer really takes, with the chosen weights of that optimizer; a step skipped by the fp16 scaler does
    not count. This holds for any accumulation, precision, strategy and number of devices, and in manual optimization.
    Frozen weights are left alone, and so are all weights in a step without any gradient. Modules, `state_dict` and
    gradients do not change, and a resumed run equals the uninterrupted one bit for bit.

    `change` says what a constraint does to weights. It determines which other callbacks may act on the same weight;
    the others are refused.

    Logged: nothing during training; TensorBoard's text `reg/setup_constraints` shows what happens to each weight.

    Args:
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            weight is complex or computed by another parametrization.
        MisconfigurationException: When training starts, if the strategy hides weights (FSDP1, DeepSpeed, XLA), or if
            the constraint and another callback would undo each other's changes of a weight.

    Example:
        >>> class Box(Constraint):
        ...     def project(self, weights):
        ...         for weight in weights:
        ...             weight.clamp_(-1, 1)
        >>> Box(select="encoder.*")
        Box(select='encoder.*')

    """

    change: ClassVar[Change] = "moves"
    """What `project` does. `"zeros"`: it sets entries to zero and changes nothing else. `"shrinks"`: it multiplies
    units by factors of at most 1. `"norms"`: it multiplies units by any positive factors. `"moves"`: anything else; it
    shares no weight with another constraint, with spectral control, or with a penalty in `mode="proximal"`."""

    takes_shards: ClassVar[bool] = False
    """Whether `project` works on DTensors, for example because it changes each entry by itself. If not, sharded
    weights (FSDP2, tensor parallelism) are gathered, one at a time."""

    survives_averaging: ClassVar[bool] = False
    """Whether an average of weights that keep the rule also keeps it; then weight averaging needs no warning."""

    turn: ClassVar[Turn] = Turn.UNITS
    """Its turn among callbacks on the same weights."""

    def __init__(self, *, select: str | Sequence[str] | Select | None = None) -> None:
        super().__init__()
        as_select(select)
        self.select = select

    @abstractmethod
    def project(self, weights: list[Tensor]) -> None:
        """Change weights, in place, so that they keep the rule.

        Args:
            weights: The chosen weights that one optimizer trains, without gradient. Each has the output units of its
                layer along dimension 0, whatever the layout. They are views of the weights, or of copies that are
                written back. Masked entries of pruned weights count as zero. One call gets all weights, except pruned
                weights and weights that must be gathered.

        """

    def look(self, weights: list[Tensor]) -> None:
        """Read the same weights, in as many calls, right before the optimizer changes them; override it if needed."""

    def check(self, name: str, weight: Tensor) -> None:
        """Raise a ValueError if the constraint does not fit a weight; `weight` has a shape but no values."""

    def timetable(self) -> Schedule | Callable[[int], float] | None:
        """Return the schedule whose value at a step is `run.share`, or `None`."""
        return None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_unless_listed_once(self, _constraints(trainer))
            refuse_strategy(trainer, type(self).__name__)
            refuse_hidden_weights(trainer, type(self).__name__)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        # Not later: FSDP2 replaces parameters once a forward pass has run, and the sanity check runs one.
        selection = select_weights(named_weights(pl_module), as_select(self.select))
        run = Run(selection, Guard(selection, type(self).__name__, "constrained"), self.takes_shards)
        held = run.guard.held_by(trainer.optimizers)
        refuse_weights(held, type(self).__name__)
        for weight in held:
            for part in weight.by_units(torch.empty(weight.shape, device="meta")):
                self.check(weight.name, part)
        return run

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is None:  # a tuner trains for a moment before `on_fit_start`
            return
        schedule = self.timetable()
        if schedule is not None:
            self._run.schedule = Timetable(schedule, trainer, pl_module)
        refuse_undone_changes(self, self._run.selection.names, state.callbacks_of(trainer, object))
        if not self.survives_averaging:
            warn_of_averaging(trainer, type(self).__name__)
        constraints = [other for other in _constraints(trainer) if other.run]
        if self is constraints[-1]:
            plans = [
                run.plan(repr(other), _action(other), trainer.optimizers) for other in constraints if (run := other.run)
            ]
            publish(trainer, plans, ("weight", "shape", "constraints"), tags.CONSTRAINT_SETUP)

    @override
    def changes(self) -> dict[Tensor, Change]:
        chosen = () if self._run is None else self._run.selection.chosen
        return dict.fromkeys((weight.parameter for weight in chosen), self.change)

    @override
    def follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is None:
            return

        def before(optimizer: Optimizer) -> None:
            run.show(self.look, optimizer, progress.tick(trainer, pl_module))

        def after(optimizer: Optimizer, moved: AbstractSet[Tensor]) -> None:
            run.project(self.project, optimizer, moved, progress.tick(trainer, pl_module))

        looks = type(self).look is not Constraint.look
        run.steps = run.steps or AroundSteps(
            after, before if looks else None, turn=self.turn, name=type(self).__name__, once=True
        )
        run.steps.add(trainer.optimizers)

    @override
    def end_run(self, trainer: Trainer, run: Run | None) -> None:
        if run is not None and run.steps is not None:
            run.steps.remove()


def _constraints(trainer: Trainer) -> list[Constraint]:
    return state.callbacks_of(trainer, Constraint)  # type: ignore[type-abstract]  # mypy wants no abstract class here


def _action(constraint: Constraint) -> str:
    settings = settings_of(constraint)
    settings.pop("select", None)
    return f"{type(constraint).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"
