"""The base of terms that depend on what modules return for the samples of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.dropped import reaches
from lightning_reg.callbacks.penalties.ledger import Term, TermRun, terms
from lightning_reg.callbacks.penalties.listener import Heard, Listener
from lightning_reg.callbacks.penalties.refusals import refuse_optimizers, refuse_sharded_loss
from lightning_reg.callbacks.trainer import progress, state
from lightning_reg.callbacks.trainer.packages import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    has_backward,
    rank_zero_warn,
)
from lightning_reg.callbacks.trainer.refusals import refuse_strategy, refuse_unless_listed_once
from lightning_reg.callbacks.trainer.timetable import Timetable
from lightning_reg.schedules import Schedule
from lightning_reg.schedules.base import check_schedule


@dataclass
class OutputRun(TermRun):
    """State of one term between the start and the end of `fit`."""

    modules: Mapping[str, nn.Module]
    """The recorded modules, by name."""
    listener: Listener
    strength: float = 0.0
    """The strength in the current step, times the schedule."""
    is_checked: bool = False
    """Whether the modules that are called are known."""


OutputRunT = TypeVar("OutputRunT", bound=OutputRun)


class OutputTerm(Term[OutputRunT], ABC):
    """A term of the outputs of modules, a mean over samples, that is added to the loss of each micro-batch."""

    reasons: ClassVar[Mapping[Heard, str]]
    """Why nothing is added for a module, by the most that was recorded of it."""

    def __init__(self, strength: float, schedule: Schedule | Callable[[int], float] | None) -> None:
        super().__init__()
        self.strength = _checks.non_negative("strength", strength)
        if schedule is not None:
            check_schedule(schedule, "from step to factor")
        self.schedule = schedule

    @abstractmethod
    def value(self, trainer: Trainer, pl_module: LightningModule, run: OutputRunT) -> Tensor | None:
        """Return, once, the term of the calls since the last time, without its strength; None if there is none."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_unless_listed_once(self, terms(trainer))
        refuse_strategy(trainer, type(self).__name__)
        if not pl_module.automatic_optimization:
            msg = (
                f"{type(self).__name__} does not work with manual optimization, in which one step may have several"
                " losses of your own. Add the term to your loss in `training_step`, where the output of the module is"
                " available."
            )
            raise MisconfigurationException(msg)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:  # a tuner trains for a moment before `on_fit_start` of the callbacks after it
            refuse_optimizers(trainer, type(self).__name__, "loss")
            if self.schedule is not None:
                self._run.schedule = Timetable(self.schedule, trainer, pl_module)
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is None:
            return
        run.listener.drop()  # the calls of a batch for which `training_step` returned None
        run.strength = self.strength * run.factor(progress.tick(trainer, pl_module))
        run.listener.is_wanted = run.strength > 0

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        run = self._run
        if run is None:
            return
        # If the loss has no gradient, backward will raise. A loss without parameters drops the batch.
        if not loss.requires_grad or not (reaches(loss, frozenset(), are_sharded=True) or has_backward(pl_module)):
            run.listener.drop()
            return
        share = state.share_of_step(trainer, pl_module)
        ledger = self.ledger_if_read(trainer, run)
        if ledger is run.ledger:
            ledger.add_loss(state.unscaled_loss(trainer, loss), share)
        refuse_sharded_loss(loss, type(self).__name__)
        value = self.value(trainer, pl_module, run)
        if value is not None:
            # Not by `alpha`, which would be rounded to the precision of the loss.
            loss.add_(state.scale_loss(trainer, value * (run.strength * share)).to(loss.device))
        if ledger is not None:
            known = loss.new_zeros((), requires_grad=False).float() if value is None else value.detach()
            ledger.add_value(run.name, run.strength * known.to(loss.device), share)
        if not run.is_checked and progress.steps_now(trainer):
            run.is_checked = True
            self._warn_if(run, Heard.NO_CALL)
            self._warn_if(run, Heard.NO_GRAPH)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._run is not None:
            self._run.listener.drop()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:  # not earlier, because frozen weights may be trained later
            self._warn_if(self._run, Heard.NO_GRADIENT)

    @override
    def end_run(self, trainer: Trainer, run: OutputRunT | None) -> None:
        super().end_run(trainer, run)
        if run is not None:
            run.listener.remove()

    def warn(self, of: Heard, names: Iterable[str]) -> None:
        """Warn that nothing is added for these modules."""
        for name in names:
            rank_zero_warn(f"{type(self).__name__} adds nothing for {name!r}{self.reasons[of]}")

    def _warn_if(self, run: OutputRunT, of: Heard) -> None:
        """Warn of the modules of which at most `of` was recorded."""
        self.warn(of, [name for name, module in run.modules.items() if run.listener.heard[module] == of])
