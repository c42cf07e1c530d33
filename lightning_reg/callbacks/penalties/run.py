"""What a penalty knows during one fit, and what its term and the data loss were in the step at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.quota import Quota
from lightning_reg.callbacks.penalties.rounding import RoundedAway
from lightning_reg.callbacks.penalties.targets import Targets
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.loggers import log
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.plan import Plan, describe
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from lightning_reg.callbacks.trainer.timetable import Timetable
from lightning_reg.callbacks.trainer.unseen_steps import UnseenSteps
from lightning_reg.selection.weights import Selection
from lightning_reg.tensorboard import tags


class Ledger:
    """The data loss of the batches of one optimizer step, and the value of each penalty at that step."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the step."""
        self.penalties: dict[str, Tensor | float] = {}
        self._residuals: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._share = 0.0

    def add_loss(self, loss: Tensor, share: float) -> None:
        """Add the loss of one backward pass, which makes `share` of the step's gradient."""
        self._loss = loss if self._loss is None else self._loss + loss
        self._share += share

    def add_residuals(self, residuals: Mapping[str, Tensor]) -> None:
        """Keep how far the weights of one optimizer are from where they rest, if no other's are further."""
        for name, value in residuals.items():
            known = self._residuals.get(name)
            self._residuals[name] = value if known is None else torch.maximum(known, value.to(known.device))

    def log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the value of each penalty, their sum, its ratio to the mean data loss, and the distance from a minimum.

        Nothing if there is no penalty. A collective call.
        """
        if not self.penalties:
            return
        metrics = {f"{tags.PENALTY}/{name}": value for name, value in self.penalties.items()}
        total = sum(self.penalties.values())
        metrics[tags.PENALTY] = total
        if self._loss is not None:
            metrics[tags.PENALTY_RATIO] = total / state.mean_over_ranks(trainer, self._loss / self._share).abs()
        metrics |= {f"{tags.OPTIMALITY}/{name}": value for name, value in self._residuals.items()}
        log(trainer, pl_module, metrics)


@dataclass
class Run:
    """State of one penalty between the start and the end of `fit`; nothing in it has to survive a resume."""

    name: str
    selection: Selection
    targets: Targets
    unit_dims: Mapping[Tensor, int]
    """For each chosen weight the dimension of the tensor along which units lie; empty if each entry is one."""
    acts_at_step: bool
    """Whether the term acts at the optimizer step (its gradient right before, or its operator right after), instead of
    through the loss."""
    are_sharded: bool
    """Whether the optimizers hold parts of weights, as FSDP leaves them on each rank."""
    unseen: UnseenSteps
    schedule: Timetable | None = None
    """The user's, with durations in ticks."""
    pending: float = 0.0
    """Share of the coming optimizer step whose backward passes have run, but whose gradient is not yet added."""
    share: float = 0.0
    """Share of the optimizer step that is about to be taken."""
    first_step: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    quota: Quota | None = None
    """Which share of weights, or groups, the penalty has to make zero, instead of having a strength."""
    needed: Tensor | dict[Tensor, Tensor] | None = None
    """The strength that this took in the last step, or that of each weight."""
    rounded_away: RoundedAway = field(default_factory=RoundedAway)
    hooks: AroundSteps | None = None
    """What takes proximal steps after those of the optimizers."""

    def forget(self) -> None:
        """Begin the coming step anew: the gradients of its batches so far are gone."""
        self.pending = 0.0
        self.ledger.clear()

    def take_share(self, *, automatic: bool) -> float:
        """Return, once, which share of a full gradient the step has that has just been taken.

        A step that Lightning has not announced has the shares of the backward passes before it.
        """
        share = (self.share or self.pending) if automatic else 1.0
        self.share = self.pending = 0.0
        return share

    def factor(self, tick: int) -> float:
        """Return the factor on the strength at `tick`."""
        return 1.0 if self.schedule is None else _checks.non_negative(f"schedule({tick})", self.schedule(tick))

    def largest_factor(self, tick: int) -> float:
        """Return the largest factor on the strength, as far as it can be known at `tick`."""
        return self.factor(tick) if self.schedule is None else max(self.factor(tick), self.schedule.peak)

    def plan(self, settings: str, action: str, optimizers: Sequence[Optimizer]) -> Plan:
        """Return what happens to each weight: `action` if it is chosen."""
        trained = set(self.targets.of(optimizers))
        return Plan(
            settings,
            shapes={weight.name: describe(weight) for weight in self.selection.weights},
            actions={
                weight.name: action if weight.parameter in trained else f"{action} (not trained at the moment)"
                for weight in self.selection.chosen
            },
            left_out=self.selection.left_out,
        )
