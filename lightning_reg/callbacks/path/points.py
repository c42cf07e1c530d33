"""Record the outcome of each strength, for the result and for the loggers."""

import math
from collections.abc import Iterable

from torch import Tensor

from lightning_reg.callbacks.path.result import PathResult, Point, choice
from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.settings import Settings
from lightning_reg.callbacks.path.snapshots import Snapshot
from lightning_reg.callbacks.trainer import logged
from lightning_reg.callbacks.trainer.loggers import write_scalars
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.functional.tensors.shards import whole
from lightning_reg.tensorboard import tags


def add_point(settings: Settings, trainer: Trainer, pl_module: LightningModule, run: PathRun) -> None:
    """Record the outcome of the current strength, and keep the module if `rule` may choose it."""
    strength, nonzero = run.strength, count_nonzero(run.names)
    score, error = run.scores.end_epoch(trainer) if run.scores else (math.nan, math.nan)
    weights = {name: whole(weight.detach()).to("cpu", copy=True) for weight, name in run.names.items()}
    run.points.append(Point(strength, nonzero, score, error, weights))
    run.best = choice(
        run.points, settings.rule, lower_is_better=settings.monitor_mode == "min", has_scores=run.scores is not None
    )
    if settings.restore and (settings.rule == "one_se" or run.best == run.position):
        if settings.rule == "best":
            run.snapshots.clear()
        run.snapshots[run.position] = Snapshot(pl_module)
    step = logged.log_step(trainer) - 1
    write_scalars(trainer, {f"{tags.PATH}/strength": strength, f"{tags.PATH}/nonzero": float(nonzero)}, step)


def result_of(settings: Settings, run: PathRun) -> PathResult:
    """Return the result of the path so far."""
    dims = settings.penalty.unit_dims(list(run.names))
    return PathResult(
        run.points,
        run.best,
        settings.monitor,
        None if dims is None else {run.names[w]: d for w, d in dims.items()},
        run.relaxed_score,
    )


def count_nonzero(weights: Iterable[Tensor]) -> int:
    """Return the number of nonzero entries over all ranks."""
    return sum(int(whole(weight.detach()).count_nonzero()) for weight in weights)
