"""The callback that trains through a series of strengths."""

import math
from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.path.refusals import (
    refuse_cuts,
    refuse_rare_validation,
    warn_of_cut,
    warn_of_schedulers,
    warn_of_unsettled,
)
from lightning_reg.callbacks.path.result import PathResult, Point, Rule, choice
from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.scores import Scores
from lightning_reg.callbacks.path.search import Search
from lightning_reg.callbacks.path.snapshots import Snapshot
from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.penalties.formula import Formula
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.loggers import log_for_callbacks, write_figure, write_scalars
from lightning_reg.callbacks.trainer.packages import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
)
from lightning_reg.functional.tensors.shards import whole
from lightning_reg.tensorboard import tags

Direction = Literal["down", "up"]
MonitorMode = Literal["min", "max"]

# Holds all weights at zero, whatever their gradients; or the largest number of the weights' precision, if that is less.
_HOLDS_AT_ZERO = 1e12
# The search for the largest strength may take this many batches, or a third of the epochs of the path if that is more.
_SEARCH = 10_000
_ROUND_UP = 5e-7


class _Behind(Callback):
    """Sees gradients behind all other callbacks: with what they have added."""

    def __init__(self, path: "RegularizationPath") -> None:
        self._path = path

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._path.see_gradients(trainer, pl_module, optimizer)


@final
class RegularizationPath(DuringFit[PathRun]):
    r"""Train through a series of strengths in one fit, and keep the best: the regularization path.

    The strengths are :math:`\lambda_k = \lambda_{\max}\, q^{k / (n - 1)}`, with :math:`q` the `smallest`. Each starts
    from the weights and the optimizer state of the one before, which are close. The fit ends itself; then the module
    has the weights of the choice.

    :math:`\lambda_{\max}` is the least strength at which all chosen weights vanish, of the mean loss over an epoch,
    with all other parameters at their optimum: for a linear model, such as `Lasso`, scikit-learn's largest `alpha`. The
    first epochs find it: they hold the chosen weights at zero and train the others until the estimate settles, for
    10000 batches or a third of the path at most. `direction="down"` goes on from there. It is the default, since where
    the loss is convex each strength takes a few steps. Where all layers of a deep network are chosen, zero is a resting
    place, which no gradient leaves: this is refused, and `direction="up"` starts with the dense network, at the weakest
    strength. Its largest strength is then the least at which all chosen weights would vanish by the gradient of the
    first step. A dense network keeps weights far beyond :math:`\lambda_{\max}`, since the layers that are not penalized
    grow as these shrink: for a sparse one, pass `strengths` that go further.

    Logged, for the loggers once for each strength and for callbacks at the end of each epoch: `reg/path/strength`, also
    in the progress bar, and `reg/path/nonzero`, the number of entries that are not zero. At the end TensorBoard has
    `result.plot()` as the image `reg/path`. Checkpoints hold the chosen weights of every strength so far, and what is
    needed to go on: a resumed path equals the uninterrupted one.

    Args:
        penalty: A penalty with `mode="proximal"` and no schedule, not in the trainer's callbacks itself. Its own
            strength is ignored, and is what it was afterwards.
        strengths: How many, >= 2, on a logarithmic grid from the largest down to `smallest` times it; or the strengths,
            > 0, which are visited in the order of `direction`.
        smallest: The least strength as a share of the largest, in (0, 1).
        epochs: The most epochs for each strength, >= 1.
        tolerance: Go on to the next strength as soon as the optimality residual (see `Penalty`) is at most this, >= 0,
            in two epochs in a row. It is of the weights at the end of an epoch, and of the mean gradient over it: exact
            where an epoch is one step, and near a minimum, where weights hardly move. It takes the memory of one copy
            of the chosen weights. `None`: each strength has all its epochs.
        monitor: The name of a value that the module logs, to choose the best strength by. `None`: the last.
        monitor_mode: Whether the best is the `"min"` or the `"max"`.
        rule: `"best"`; or `"one_se"`, the strongest whose score is within one standard error of the best, over the
            monitor's values of the validation batches of the best. It keeps the module at all strengths on the CPU.
        direction: `"down"`, from the largest strength, or `"up"`, from the weakest.
        restore: Whether to leave the choice in the module, all parameters and buffers; otherwise the last strength
            stays.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
        MisconfigurationException: When training starts, if `max_epochs`, `max_steps`, `max_time` or `EarlyStopping`
            might cut the path, under FSDP1, and for the reasons of the penalty; during training, if zero is a resting
            place, or `monitor` is not logged.

    Example:
        >>> from lightning_reg import L1Penalty
        >>> path = RegularizationPath(L1Penalty(0.0, mode="proximal"), strengths=50, monitor="val_loss")
        >>> path.result is None  # before the fit
        True

    Reference:
        Friedman, Hastie & Tibshirani, Regularization Paths for Generalized Linear Models via Coordinate Descent, 2010,
        doi:10.18637/jss.v033.i01; for networks, Lemhadri et al., LassoNet, 2021, arXiv:1907.12207.

    """

    def __init__(  # noqa: PLR0913  # settings of a path, each for itself
        self,
        penalty: Penalty,
        *,
        strengths: int | Sequence[float] = 30,
        smallest: float = 1e-3,
        epochs: int = 10,
        tolerance: float | None = None,
        monitor: str | None = None,
        monitor_mode: MonitorMode = "min",
        rule: Rule = "best",
        direction: Direction = "down",
        restore: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(penalty, Penalty):
            msg = f"`penalty` must be a penalty with mode='proximal', got {penalty!r}."
            raise TypeError(msg)
        if penalty.mode != "proximal" or penalty.schedule is not None:
            msg = (
                f"`penalty` must have mode='proximal', the one that makes zeros, and no schedule, got {penalty!r}."
                " The path itself changes the strength."
            )
            raise ValueError(msg)
        self.penalty = penalty
        self.direction: Direction = direction
        _checks.one_of("direction", direction, get_args(Direction))
        self.strengths = _checked_strengths(strengths)
        self.smallest = _checks.in_range("smallest", smallest, 0, 1)
        if self.smallest in (0, 1):
            msg = f"`smallest` must be in (0, 1), without 0 and 1, got {smallest}."
            raise ValueError(msg)
        self.epochs = _checks.count("epochs", epochs, 1)
        self.tolerance = None if tolerance is None else _checks.non_negative("tolerance", tolerance)
        if monitor is not None and not isinstance(monitor, str):
            msg = f"`monitor` must be the name of a logged value, or None, got {monitor!r}."
            raise TypeError(msg)
        self.monitor = monitor
        self.monitor_mode: MonitorMode = monitor_mode
        _checks.one_of("monitor_mode", monitor_mode, get_args(MonitorMode))
        self.rule: Rule = rule
        _checks.one_of("rule", rule, get_args(Rule))
        if rule == "one_se" and monitor is None:
            msg = "`rule='one_se'` needs a `monitor`, whose values over validation batches have a standard error."
            raise ValueError(msg)
        self.restore = _checks.boolean("restore", restore)
        self._check_limit()
        self._result: PathResult | None = None
        self._strength_before = penalty.strength
        self._behind = _Behind(self)
        self._loaded: dict[str, Any] = {}

    @property
    def result(self) -> PathResult | None:
        """The path so far, or of the last fit; None before the first strength has had its time."""
        return self._result

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_loaded": {}}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if state.has_flat_shards(trainer):
            msg = "RegularizationPath does not work with FSDP1. Use FSDP2 (ModelParallelStrategy)."
            raise MisconfigurationException(msg)
        self._loaded, self._result = {}, None
        self._strength_before = self.penalty.strength
        state.insert_callback(trainer, self.penalty, after=self)
        state.insert_callback(trainer, self._behind, after=state.callbacks_of(trainer, Callback)[-1])

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> PathRun:
        return PathRun(None if self.monitor is None else Scores(self.monitor, self.rule == "one_se"))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        run, of_penalty = self._run, self.penalty.run
        if run is None or of_penalty is None:  # a tuner trains for a moment before `on_fit_start`
            return
        is_searched = isinstance(self.strengths, int)
        refuse_cuts(trainer, self._count, self.epochs, is_searched=is_searched)
        if run.scores:
            refuse_rare_validation(trainer)
        warn_of_schedulers(trainer)
        weights = set(of_penalty.targets.of(trainer.optimizers))
        run.names = {
            weight.parameter: weight.name for weight in of_penalty.selection.chosen if weight.parameter in weights
        }
        if self._loaded:
            self._continue(run, pl_module)
        elif is_searched:
            limit = max(math.ceil(_SEARCH / trainer.num_training_batches), self._count * self.epochs // 3)
            run.search, run.start = Search(limit), Snapshot(pl_module)
        else:
            run.strengths = sorted(self.strengths, reverse=self.direction == "down")  # type: ignore[arg-type]
        self._set_strength(run)
        trainer.should_stop = trainer.should_stop or run.is_over

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            self._set_strength(self._run)
            if self._run.scores:
                self._run.scores.begin_epoch()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is not None and run.owes_end and not run.is_over:
            # Resumed from a checkpoint of an epoch's last batch: Lightning leaves out validation and the hooks of its
            # end. A strength that needs a score from there has one more epoch.
            self._end_epoch(trainer, pl_module, run, has_score=run.scores is None)
            self._set_strength(run)

    def see_gradients(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add up the gradients of the step that `optimizer` is about to make, if they are needed."""
        run, of_penalty = self._run, self.penalty.run
        if run is None or of_penalty is None or (run.search is None and self.tolerance is None) or run.is_over:
            return
        weights = of_penalty.targets.of([optimizer])
        scale, share = state.gradient_scale(trainer, optimizer), of_penalty.share
        run.mean.add(weights, share, scale, may_skip=state.may_skip_steps(trainer))
        if run.search is not None and (dense := [w for w in weights if run.names[w] not in run.search.begun]):
            # The first step of this optimizer: from now on its weights are zero, and the coming epochs count.
            run.search.begun |= self._vanishing(trainer, run, dense)
            with torch.no_grad():
                for weight in dense:
                    weight.zero_()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        if run is None or run.is_over:
            return
        steps = state.steps_now(trainer)
        run.owes_end = steps and state.ends_epoch(trainer)
        if not run.strengths or not steps:
            return
        if run.is_new or state.ends_epoch(trainer):
            run.is_new = False
            log_for_callbacks(pl_module, {f"{tags.PATH}/strength": run.strengths[run.position]}, prog_bar=True)
            log_for_callbacks(pl_module, {f"{tags.PATH}/nonzero": float(_nonzero(run.names))})

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None and self._run.scores:
            self._run.scores.begin_validation()

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._run is not None and self._run.scores and not trainer.sanity_checking:
            self._run.scores.end_batch(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None and self._run.scores and not trainer.sanity_checking:
            self._run.scores.end_validation(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None and not self._run.is_over:
            self._end_epoch(trainer, pl_module, self._run, has_score=True)

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule, run: PathRun, *, has_score: bool) -> None:
        """Count an epoch, and go on to the next strength if it was the last of this one."""
        run.owes_end = False
        run.epochs += 1
        if run.search is not None:
            self._look(trainer, pl_module, run, run.search)
        else:
            # Twice in a row: weights that swing past a minimum and back may look solved once.
            was_solved, run.is_solved = run.is_solved, self._is_solved(trainer, run)
            if run.epochs >= self.epochs or (was_solved and run.is_solved):
                if has_score:
                    self._end_strength(trainer, pl_module, run)
                else:
                    run.epochs -= 1
        run.mean.clear()

    def _look(self, trainer: Trainer, pl_module: LightningModule, run: PathRun, search: Search) -> None:
        """Estimate the largest strength after an epoch, and begin the path if it is known."""
        if run.epochs == 1 or run.mean.is_empty:  # its first step was of the dense network
            return
        each = self._vanishing(trainer, run, list(run.names))
        search.estimates.append(max(each.values()))
        at_rest = search.is_at_rest(each)
        settles = search.settles(min((w.dtype for w in run.names), key=lambda kind: torch.finfo(kind).bits))
        if not (at_rest or settles or len(search.estimates) >= search.limit):
            return
        if not (at_rest or settles):
            warn_of_unsettled(search.limit, search.estimates[-1])
        start, run.search, run.start, run.epochs = run.start, None, None, 0
        largest = search.estimates[-1]
        if self.direction == "up" or at_rest:
            assert start is not None  # made with the search
            start.restore(pl_module)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
        if at_rest:
            if self.direction == "down":
                msg = (
                    "Zero is a resting place of the chosen weights: with all of them at zero, no gradient reaches some,"
                    " so a path down from zero would never leave it. Start dense, with `direction='up'`, or choose the"
                    " weights of one layer by the penalty's `select`."
                )
                raise MisconfigurationException(msg)
            largest = max(search.begun.values())
        # Rounded up, past the error of the search, so that at the largest strength all weights are zero.
        largest *= 1 + max(_ROUND_UP, 4 * torch.finfo(next(iter(run.names)).dtype).eps)
        steps = self._count - 1
        grid = [largest * self.smallest ** (index / steps) for index in range(self._count)]
        run.strengths = grid if self.direction == "down" else grid[::-1]

    def _is_solved(self, trainer: Trainer, run: PathRun) -> bool:
        """Tell whether the weights are near enough to the minimum at this strength."""
        if self.tolerance is None or run.mean.is_empty:
            return False
        strength = run.strengths[run.position]
        with torch.no_grad():
            found = [self.penalty.residual([weight], [run.mean.of(weight) / strength]) for weight in run.names]
        values = [value for value in found if value is not None]
        if not values:
            msg = (
                f"`tolerance` needs a penalty that defines `residual`, the distance from a minimum, got"
                f" {self.penalty!r}. Define it, or leave `tolerance` out."
            )
            raise MisconfigurationException(msg)
        worst = torch.stack([value.to(values[0].device) for value in values]).amax()
        return bool(state.largest_over_ranks(trainer, worst) <= self.tolerance)

    def _end_strength(self, trainer: Trainer, pl_module: LightningModule, run: PathRun) -> None:
        """Note what the current strength has led to, and go on to the next."""
        strength, nonzero = run.strengths[run.position], _nonzero(run.names)
        score, error = run.scores.end_epoch(trainer) if run.scores else (math.nan, math.nan)
        weights = {name: whole(weight.detach()).to("cpu", copy=True) for weight, name in run.names.items()}
        run.points.append(Point(strength, nonzero, score, error, weights))
        run.best = choice(
            run.points, self.rule, lower_is_better=self.monitor_mode == "min", has_scores=run.scores is not None
        )
        if self.restore and (self.rule == "one_se" or run.best == run.position):
            if self.rule == "best":
                run.snapshots.clear()
            run.snapshots[run.position] = Snapshot(pl_module)
        self._result = self._make_result(run)
        step = state.log_step(trainer) - 1
        write_scalars(trainer, {f"{tags.PATH}/strength": strength, f"{tags.PATH}/nonzero": float(nonzero)}, step)
        run.position, run.epochs, run.is_solved = run.position + 1, 0, False
        trainer.should_stop = trainer.should_stop or run.is_over

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is None:
            return
        if not run.is_over and not getattr(trainer, "fast_dev_run", False):
            warn_of_cut(run.position, run.strengths)
        if run.best in run.snapshots:
            run.snapshots[run.best].restore(pl_module)
        if self._result is not None:
            write_figure(trainer, tags.PATH, self._result.plot, state.log_step(trainer))

    @override
    def end_run(self, trainer: Trainer, run: PathRun | None) -> None:
        self.penalty.strength = self._strength_before
        state.remove_callback(trainer, self.penalty)
        state.remove_callback(trainer, self._behind)
        if run is not None and run.start is not None:  # cut while it looked for the largest strength
            run.start.restore(trainer.lightning_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        run = self._run
        if run is None:
            return {}
        return {
            "strengths": list(run.strengths),
            "position": run.position,
            "epochs": run.epochs,
            "is_solved": run.is_solved,
            "owes_end": run.owes_end,
            "mean": run.mean.state(run.names),
            "points": [(p.strength, p.nonzero, p.score, p.error, dict(p.weights)) for p in run.points],
            "score": None if run.scores is None else (run.scores.value, run.scores.error),
            "search": None if run.search is None else dict(vars(run.search)),
            "start": None if run.start is None else run.start.state(),
            "snapshots": {index: snapshot.state() for index, snapshot in run.snapshots.items()},
            "best": run.best,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def _continue(self, run: PathRun, pl_module: LightningModule) -> None:
        """Go on where a checkpoint was made."""
        kept, self._loaded = self._loaded, {}
        run.strengths, run.position, run.epochs = kept["strengths"], kept["position"], kept["epochs"]
        run.is_solved, run.owes_end = kept["is_solved"], kept["owes_end"]
        run.mean.load(kept["mean"], {name: weight for weight, name in run.names.items()})
        run.points, run.best = [Point(*point) for point in kept["points"]], kept["best"]
        if run.scores is not None and kept["score"] is not None:
            run.scores.value, run.scores.error = kept["score"]
        run.search = None if kept["search"] is None else Search(**kept["search"])
        run.start = None if kept["start"] is None else Snapshot(pl_module, kept["start"])
        run.snapshots = {index: Snapshot(pl_module, saved) for index, saved in kept["snapshots"].items()}
        if run.points:
            self._result = self._make_result(run)

    def _make_result(self, run: PathRun) -> PathResult:
        dims = self.penalty.unit_dims(list(run.names))
        return PathResult(
            run.points, run.best, self.monitor, None if dims is None else {run.names[w]: d for w, d in dims.items()}
        )

    def _set_strength(self, run: PathRun) -> None:
        if run.strengths:
            self.penalty.strength = run.strengths[min(run.position, len(run.strengths) - 1)]
        else:
            self.penalty.strength = min(_HOLDS_AT_ZERO, *(torch.finfo(weight.dtype).max for weight in run.names))

    @torch.no_grad()
    def _vanishing(self, trainer: Trainer, run: PathRun, weights: list[Tensor]) -> dict[str, float]:
        """Return for each weight, by name, the least strength at which it stays zero under the mean gradient."""
        kept = [weight.detach().clone() for weight in weights]
        for weight in weights:  # layers of units are known by their weights
            weight.copy_(-run.mean.of(weight))
        found = self.penalty.vanishing_strengths(weights, [1.0] * len(weights))
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)
        largest = [each.amax() if each.numel() else each.new_zeros(()) for each in found]
        whole_run = state.largest_over_ranks(trainer, torch.stack([each.to(largest[0].device) for each in largest]))
        return dict(zip((run.names[weight] for weight in weights), whole_run.tolist(), strict=True))

    @property
    def _count(self) -> int:
        return self.strengths if isinstance(self.strengths, int) else len(self.strengths)

    def _check_limit(self) -> None:
        """Raise if the largest strength is not given, and cannot be computed."""
        penalty = self.penalty
        is_known = type(penalty).vanishing_strengths is not Formula.vanishing_strengths
        if isinstance(self.strengths, int) and (not is_known or getattr(penalty, "l1_ratio", 1.0) == 0):
            msg = (
                "`strengths` must be a list of strengths for a penalty that does not know at which strength weights"
                f" vanish (`vanishing_strengths`), got {self.strengths} for {penalty!r}."
            )
            raise ValueError(msg)


def _checked_strengths(strengths: object) -> int | list[float]:
    if not _checks.is_list(strengths):
        return _checks.count("strengths", strengths, 2)
    values = [_checks.positive("strengths", value) for value in strengths]
    if not values or len(set(values)) < len(values):
        msg = f"`strengths` must be at least 2, or a list of different strengths > 0, got {strengths!r}."
        raise ValueError(msg)
    return values


def _nonzero(weights: Sequence[Tensor] | dict[Tensor, str]) -> int:
    """Return how many entries are not zero, over all ranks."""
    return sum(int(whole(weight.detach()).count_nonzero()) for weight in weights)
