"""What is done once before the first step, for all penalties together."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer

from lightning_reg.callbacks import _compatibility, _plan
from lightning_reg.callbacks._run import Run

if TYPE_CHECKING:
    from lightning_reg.callbacks._penalty import Penalty


def begin(trainer: Trainer, pl_module: LightningModule, runs: Sequence[tuple["Penalty", Run]]) -> None:
    """Warn of doubtful settings, show the plan, and have proximal steps follow those of the optimizers."""
    optimizers = trainer.optimizers
    _compatibility.warn_of_weight_decay(
        {
            type(penalty).__name__: run.targets.settings(optimizers, "weight_decay")
            for penalty, run in runs
            if penalty.overlaps_weight_decay and penalty.strength
        }
    )
    plans = [run.plan(repr(penalty), f"{run.name} {penalty.strength:g}", optimizers) for penalty, run in runs]
    _plan.publish(trainer, plans)
    proximal = [(penalty, run) for penalty, run in runs if penalty.mode == "proximal"]
    if not proximal:
        return
    _compatibility.warn_of_averaging(trainer)
    _compatibility.refuse_shared_weights(
        {run.name: run.targets.of(optimizers) for penalty, run in proximal if not penalty.exact_in_any_company}
    )
    for penalty, run in sorted(proximal, key=lambda pair: not pair[0].exact_in_any_company):
        run.hooks.add(optimizers, partial(penalty.after_optimizer_step, trainer, pl_module))
