"""The coordination of all penalties of a trainer: common warnings, one plan, the order of proximal steps."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import combinations
from typing import Protocol

from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.penalties.refusals import (
    refuse_operators_in_sequence,
    warn_of_averaging,
    warn_of_weight_decay,
)
from lightning_reg.callbacks.penalties.run import Run
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.plan import publish
from lightning_reg.callbacks.trainer.settings import call_of
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps, Turn


class Member(Protocol):
    """A penalty as seen by the others."""

    strength: float
    mode: str

    @property
    def run(self) -> Run | None:
        """Its state during a fit."""

    @property
    def exact_in_any_company(self) -> bool:
        """Whether its operator, before one other, gives the operator of the sum."""

    @property
    def mixes_entries(self) -> bool:
        """Whether its operator, after one other, never gives the operator of the sum."""

    @property
    def overlaps_weight_decay(self) -> bool:
        """Whether it shrinks weights like the decay of an optimizer."""

    def before_update(self, optimizer: Optimizer) -> None:
        """Act when the gradients of `optimizer` are complete."""

    def after_update(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, moved: AbstractSet[Tensor]
    ) -> None:
        """Act when `optimizer` has made an update of `moved`."""


def begin_together(trainer: Trainer, penalties: Sequence[Member]) -> None:
    """Warn of doubtful settings, refuse operators that do not go together, and show the plan."""
    optimizers = trainer.optimizers
    runs = [(penalty, run) for penalty in penalties if (run := penalty.run)]
    warn_of_weight_decay(
        {
            type(penalty).__name__: run.targets.weight_decays(optimizers)
            for penalty, run in runs
            if penalty.overlaps_weight_decay and (penalty.strength or run.told)
        }
    )
    publish(
        trainer,
        [
            run.plan(
                call_of(penalty, without="strength") if run.told else repr(penalty),
                run.action(penalty.strength),
                optimizers,
            )
            for penalty, run in runs
        ],
    )
    proximal = [(penalty, run) for penalty, run in runs if penalty.mode == "proximal"]
    if proximal:
        warn_of_averaging(trainer)
        for (one, run), (other, others_run) in combinations(proximal, 2):
            if one.mixes_entries or other.mixes_entries or not (one.exact_in_any_company or other.exact_in_any_company):
                refuse_operators_in_sequence({r.name: r.targets.of(optimizers) for r in (run, others_run)})


def follow_steps(trainer: Trainer, pl_module: LightningModule, penalties: Sequence[Member]) -> None:
    """Have the proximal steps of all penalties follow the steps of the optimizers, in the exact order."""
    proximal = [(penalty, run) for penalty in penalties if (run := penalty.run) and penalty.mode == "proximal"]
    for penalty, run in sorted(proximal, key=lambda pair: not pair[0].exact_in_any_company):
        after = partial(penalty.after_update, trainer, pl_module)
        run.hooks = run.hooks or AroundSteps(after, penalty.before_update, turn=Turn.OPERATORS)
        run.hooks.add(trainer.optimizers)
