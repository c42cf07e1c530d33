"""Save and load the state of a path. A resumed path equals the uninterrupted one."""

from typing import Any

from lightning_reg.callbacks.path.result import Point
from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.search import Search
from lightning_reg.callbacks.path.snapshots import Snapshot
from lightning_reg.callbacks.trainer.packages import LightningModule


def save(run: PathRun) -> dict[str, Any]:
    """Return the state of the path; a collective call where weights are sharded."""
    return {
        "strengths": list(run.strengths),
        "position": run.position,
        "epochs": run.epochs,
        "is_solved": run.is_solved,
        "solved": run.solved,
        "owes_start": run.owes_start,
        "owes_end": run.owes_end,
        "mean": run.mean.state(run.names | run.others),
        "points": [(p.strength, p.nonzero, p.score, p.error, dict(p.weights)) for p in run.points],
        "score": None if run.scores is None else (run.scores.value, run.scores.error),
        "search": None if run.search is None else dict(vars(run.search)),
        "start": None if run.start is None else run.start.state(),
        "snapshots": {index: snapshot.state() for index, snapshot in run.snapshots.items()},
        "best": run.best,
        "is_relaxed": run.is_relaxed,
        "relaxed_score": run.relaxed_score,
    }


def load(run: PathRun, kept: dict[str, Any], pl_module: LightningModule) -> None:
    """Load the state of the path from a checkpoint."""
    run.strengths, run.position, run.epochs = kept["strengths"], kept["position"], kept["epochs"]
    run.is_solved, run.solved = kept["is_solved"], kept["solved"]
    run.owes_start, run.owes_end = kept["owes_start"], kept["owes_end"]
    run.mean.load(kept["mean"], {name: weight for weight, name in (run.names | run.others).items()})
    run.points, run.best = [Point(*point) for point in kept["points"]], kept["best"]
    if run.scores is not None and kept["score"] is not None:
        run.scores.value, run.scores.error = kept["score"]
    run.search = None if kept["search"] is None else Search(**kept["search"])
    run.start = None if kept["start"] is None else Snapshot(pl_module, kept["start"])
    run.snapshots = {index: Snapshot(pl_module, saved) for index, saved in kept["snapshots"].items()}
    run.is_relaxed, run.relaxed_score = kept["is_relaxed"], kept["relaxed_score"]
