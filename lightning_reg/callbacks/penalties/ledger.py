"""The common record of all terms of an objective: their values and the data loss of a step, logged together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.trainer import logged, progress, state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.loggers import log
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.timetable import Timetable, factor_at
from lightning_reg.tensorboard import tags


class Ledger:
    """The data loss of the batches of one optimizer step, and the value of each penalty at that step."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the step."""
        self.penalties: dict[str, Tensor | float] = {}
        self._of_batches: dict[str, Tensor] = {}
        self._residuals: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._shares: dict[str, float] = {}
        self._share = 0.0

    def add_loss(self, loss: Tensor, share: float) -> None:
        """Add the loss of one backward pass, which contributes `share` of the step's gradient."""
        self._loss = loss if self._loss is None else self._loss + loss
        self._share += share

    def add_value(self, name: str, value: Tensor, share: float) -> None:
        """Add the value of a penalty on one batch of this rank, which contributes `share` of the step's gradient."""
        known = self._of_batches.get(name)
        self._of_batches[name] = share * value if known is None else known + share * value
        self._shares[name] = self._shares.get(name, 0.0) + share

    def add_residuals(self, residuals: Mapping[str, Tensor]) -> None:
        """Record the residuals of the weights of one optimizer; the largest over optimizers stays."""
        for name, value in residuals.items():
            known = self._residuals.get(name)
            self._residuals[name] = value if known is None else torch.maximum(known, value.to(known.device))

    def log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the value of each penalty, their sum, its ratio to the mean data loss, and the distance from a minimum.

        Nothing if there is no penalty. A collective call.
        """
        values = self.penalties | {
            name: state.mean_over_ranks(trainer, value / self._shares[name]) for name, value in self._of_batches.items()
        }
        if not values:
            return
        metrics = {f"{tags.PENALTY}/{name}": value for name, value in values.items()}
        total = sum(values.values())
        metrics[tags.PENALTY] = total
        if self._loss is not None:
            metrics[tags.PENALTY_RATIO] = total / state.mean_over_ranks(trainer, self._loss / self._share).abs()
        metrics |= {f"{tags.OPTIMALITY}/{name}": value for name, value in self._residuals.items()}
        log(trainer, pl_module, metrics)


@dataclass
class TermRun:
    """State of one term between the start and the end of `fit`."""

    name: str
    schedule: Timetable | None = field(default=None, kw_only=True)
    """The user's schedule, with durations in ticks."""
    first_step: bool = field(default=True, kw_only=True)
    ledger: Ledger = field(default_factory=Ledger, kw_only=True)

    def factor(self, tick: int) -> float:
        """Return the factor on the strength at `tick`."""
        return factor_at(self.schedule, tick)

    def forget(self) -> None:
        """Start the next step again, because the gradients of its batches so far are gone."""
        self.ledger.clear()


TermRunT = TypeVar("TermRunT", bound=TermRun)


class Term(DuringFit[TermRunT]):
    """A callback that adds a term to the objective; all terms are logged together."""

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_zero_grad(trainer, pl_module, optimizer)
        # An optimizer that evaluates its closure many times (LBFGS) starts anew with each evaluation.
        if self._run is not None:
            self._run.forget()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._run is not None and progress.steps_now(trainer):
            self._run.first_step = False
            self._run.ledger.log(trainer, pl_module)
            self._run.ledger.clear()

    def ledger_if_read(self, trainer: Trainer, run: TermRun) -> Ledger | None:
        """Return the ledger of the first term, which sees the unchanged loss; None if nothing reads the values."""
        is_read = logged.logs_now(trainer, first_step=run.first_step)
        return first.ledger if is_read and (first := terms(trainer)[0].run) else None


def terms(trainer: Trainer) -> Sequence[Term[Any]]:
    """Return the terms of the objective, in the order of the callbacks."""
    return state.callbacks_of(trainer, Term)
