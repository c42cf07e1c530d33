"""The relaxed solution: train the chosen strength's weights without the penalty, and keep its zeros."""

import math
from collections.abc import Callable, Sequence
from typing import final

from typing_extensions import override

from lightning_reg.callbacks.constraints.zeros import ZerosConstraint
from lightning_reg.callbacks.path.points import count_nonzero
from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.trainer import logged
from lightning_reg.callbacks.trainer.loggers import write_scalars
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.selection import Select
from lightning_reg.tensorboard import tags


@final
class RelaxedZeros(ZerosConstraint):
    """Keep zeros in the relaxed epochs of a path, its last ones."""

    regularizes = False  # the path itself reports the settings
    survives_averaging = True  # the path itself refuses averages

    def __init__(self, epochs: int, select: str | Sequence[str] | Select | None, acts: Callable[[], bool]) -> None:
        super().__init__(select=select)
        self.epochs = epochs
        self._acts = acts

    @override
    def timetable(self) -> Callable[[int], float]:
        return lambda _: float(self._acts())


def begin(trainer: Trainer, pl_module: LightningModule, run: PathRun) -> None:
    """Load the chosen strength into the module, and clear the optimizer state, which is from the last strength."""
    run.snapshots[run.best].start_from(trainer, pl_module)
    run.snapshots.clear()
    run.is_relaxed = True


def end(trainer: Trainer, run: PathRun) -> None:
    """Record and log the score of the relaxed solution."""
    values = {f"{tags.PATH}/strength": 0.0, f"{tags.PATH}/nonzero": float(count_nonzero(run.names))}
    if run.scores is not None:
        run.relaxed_score, _ = run.scores.end_epoch(trainer)
        if not math.isnan(run.relaxed_score):
            values[f"{tags.PATH}/relaxed_score"] = run.relaxed_score
    write_scalars(trainer, values, logged.log_step(trainer) - 1)
