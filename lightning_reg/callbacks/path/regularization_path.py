"""The callback that trains through a series of strengths."""

import math
from collections.abc import Sequence
from typing import Any, final, get_args

from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.path import checkpoint, course
from lightning_reg.callbacks.path.points import count_nonzero, result_of
from lightning_reg.callbacks.path.refusals import (
    refuse_averages,
    refuse_cuts,
    refuse_rare_validation,
    refuse_untrained,
    warn_of_cut,
    warn_of_schedulers,
)
from lightning_reg.callbacks.path.relaxed import RelaxedZeros
from lightning_reg.callbacks.path.result import PathResult, Rule
from lightning_reg.callbacks.path.run import PathRun
from lightning_reg.callbacks.path.scores import Scores
from lightning_reg.callbacks.path.search import Search
from lightning_reg.callbacks.path.settings import (
    Direction,
    MonitorMode,
    check_limit,
    check_monitor,
    check_penalty,
    check_relaxed,
    check_rule,
    checked_strengths,
    count_of,
)
from lightning_reg.callbacks.path.snapshots import Snapshot
from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.trainer import logged, progress, state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.loggers import log_for_callbacks, write_figure
from lightning_reg.callbacks.trainer.packages import Callback, LightningModule, Trainer
from lightning_reg.callbacks.trainer.refusals import refuse_flat_shards
from lightning_reg.tensorboard import tags

# The search for the largest strength may take this many batches, or a third of the epochs of the path if that is more.
_SEARCH = 10_000


class _Behind(Callback):
    """Read gradients after all other callbacks have added their share."""

    def __init__(self, path: "RegularizationPath") -> None:
        self._path = path

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._path.run is not None:
            course.see_gradients(self._path, trainer, optimizer, self._path.run)


@final
class RegularizationPath(DuringFit[PathRun]):
    r"""Train through a series of strengths in one fit, and keep the best: the regularization path.

    The strengths are :math:`\lambda_k = \lambda_{\max}\, q^{k / (n - 1)}`, where :math:`q` is `smallest`. Each strength
    starts from the weights and the optimizer state of the one before. If the last two strengths both ended by
    `tolerance`, the selected weights start on the straight line through these two minima instead, and zeros stay zero.
    The mean gradients that SGD and Adam store are then rescaled to the new strength. Lasso minima lie on such a line
    until an entry becomes zero or nonzero. The fit ends itself. The module then has the weights of the strength that
    `rule` chooses.

    :math:`\lambda_{\max}` is the smallest strength at which all selected weights are zero, if the other parameters
    minimize the mean loss over an epoch. For a linear model, such as `Lasso`, it is scikit-learn's largest `alpha`. The
    first epochs find it: they hold the selected weights at zero, and train the others until the estimate converges.
    They take at most 10000 batches, or a third of the epochs of the path if that is more.

    `direction="down"`, the default, continues from these zeros. Where the loss is convex, each strength takes a few
    steps. If all layers of a deep network are selected, zero is a stationary point: no gradient moves the weights away.
    Training down then raises an error. `direction="up"` starts from the dense network, at the weakest strength. At a
    stationary point, its largest strength is the smallest one at which the gradient of the first step would let all
    selected weights vanish. A dense network keeps weights far beyond :math:`\lambda_{\max}`, because the layers without
    penalty grow as the penalized ones shrink. For a sparse network, pass larger `strengths`.

    Logged: `reg/path/strength`, also in the progress bar, and `reg/path/nonzero`, the number of nonzero entries.
    Loggers get both once per strength, other callbacks at the end of each epoch. After training, TensorBoard shows
    `result.plot()` as the image `reg/path`. Checkpoints hold the selected weights of every strength so far and the
    state of the path. A resumed path equals the uninterrupted one.

    The penalty also shrinks the weights that stay nonzero. `relaxed_epochs` trains the chosen strength's weights
    further at strength 0, and its zeros stay zero. The result is the relaxed solution: for a linear model, least
    squares on the selected inputs. The optimizers start with an empty state. The score is `result.relaxed_score`,
    logged as `reg/path/relaxed_score`.

    Args:
        penalty: A penalty with `mode="proximal"` and no schedule. Do not add it to the trainer's callbacks. The path
            ignores its strength, and restores it after training.
        strengths: The number of strengths, >= 2, on a logarithmic grid from the largest down to `smallest` times the
            largest; or a list of strengths, > 0. `direction` sets their order.
        smallest: The smallest strength as a share of the largest, in (0, 1).
        epochs: The largest number of epochs per strength, >= 1.
        tolerance: Move to the next strength once the optimality residual (see `Penalty`) is at most this, >= 0, in two
            epochs in a row. The residual combines the weights at the end of an epoch with the mean gradient over the
            epoch, so it is accurate near a minimum, where weights hardly move. It takes the memory of one copy of the
            selected weights. The first strength also waits until all mean gradients of the other parameters are at most
            `tolerance` times the strength (another copy): they may start far from their optimum, as an intercept does,
            and the residual does not always show it. `None`: each strength takes all its epochs.
        monitor: The name of a logged value that scores a strength. `None`: the last strength is chosen.
        monitor_mode: Whether the best score is the `"min"` or the `"max"`.
        rule: `"best"` chooses the strength with the best score. `"one_se"` chooses the largest strength with a score
            within one standard error of the best. The standard error is over the validation batches of the best
            strength. `"one_se"` keeps one copy of the module per strength on the CPU.
        direction: `"down"`, from the largest strength, or `"up"`, from the smallest.
        restore: Whether the module ends with the parameters and buffers of the chosen strength. Otherwise it keeps
            those it has after the last strength.
        relaxed_epochs: The number of epochs without the penalty after the last strength, >= 0. They start from the
            chosen strength and keep its zeros. Needs `restore=True`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
        MisconfigurationException: When training starts, if `max_epochs`, `max_steps`, `max_time` or `EarlyStopping`
            might stop the path early, if a callback averages weights, if epochs do not end with the validation that
            `monitor` needs, under FSDP1, or if the penalty itself raises it; during training, if zero is a stationary
            point, or `monitor` is not logged.

    Example:
        >>> from lightning_reg import L1Penalty
        >>> path = RegularizationPath(L1Penalty(0.0, mode="proximal"), strengths=50, monitor="val_loss")
        >>> path.result is None  # before the fit
        True

    Reference:
        Friedman, Hastie & Tibshirani, Regularization Paths for Generalized Linear Models via Coordinate Descent, 2010,
        doi:10.18637/jss.v033.i01; for straight lines, Rosset & Zhu, Piecewise Linear Regularized Solution Paths, 2007,
        doi:10.1214/009053606000001370; for networks, Lemhadri et al., LassoNet, 2021, arXiv:1907.12207; for
        `relaxed_epochs`, Meinshausen, Relaxed Lasso, 2007, doi:10.1016/j.csda.2006.12.019.

    """

    def __init__(  # noqa: PLR0913  # independent settings
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
        relaxed_epochs: int = 0,
    ) -> None:
        super().__init__()
        check_penalty(penalty)
        self.penalty = penalty
        self.direction: Direction = direction
        _checks.one_of("direction", direction, get_args(Direction))
        self.strengths = checked_strengths(strengths)
        self.smallest = _checks.between("smallest", smallest, 0, 1)
        self.epochs = _checks.count("epochs", epochs, 1)
        self.tolerance = None if tolerance is None else _checks.non_negative("tolerance", tolerance)
        self.monitor = check_monitor(monitor)
        self.monitor_mode: MonitorMode = monitor_mode
        _checks.one_of("monitor_mode", monitor_mode, get_args(MonitorMode))
        self.rule: Rule = rule
        check_rule(rule, monitor)
        self.restore = _checks.boolean("restore", restore)
        self.relaxed_epochs = _checks.count("relaxed_epochs", relaxed_epochs, 0)
        check_relaxed(self.relaxed_epochs, penalty, restore=self.restore)
        check_limit(self.strengths, penalty)
        self._result: PathResult | None = None
        self._strength_before = penalty.strength
        self._behind = _Behind(self)
        self._zeros = RelaxedZeros(self.relaxed_epochs, penalty.select, self._is_relaxed)
        self._loaded: dict[str, Any] = {}

    @property
    def result(self) -> PathResult | None:
        """The result of the current or last fit; None until its first strength ends."""
        return self._result

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_loaded": {}}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_flat_shards(trainer, "RegularizationPath")
        refuse_averages(trainer)
        self._loaded, self._result = {}, None
        self._strength_before = self.penalty.strength
        state.insert_callback(trainer, self.penalty, after=self)
        if self.relaxed_epochs:
            state.insert_callback(trainer, self._zeros, after=self.penalty)
        state.insert_callback(trainer, self._behind, after=state.callbacks_of(trainer, Callback)[-1])

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> PathRun:
        scores = None if self.monitor is None else Scores(self.monitor, self.rule == "one_se")
        return PathRun(scores, self.relaxed_epochs)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        run, of_penalty = self._run, self.penalty.run
        if run is None or of_penalty is None:  # a tuner runs a short fit before `on_fit_start`
            return
        refuse_cuts(
            trainer,
            count_of(self.strengths),
            self.epochs,
            is_searched=isinstance(self.strengths, int),
            relaxed_epochs=self.relaxed_epochs,
        )
        if run.scores:
            refuse_rare_validation(trainer)
        warn_of_schedulers(trainer)
        weights = set(of_penalty.targets.of(trainer.optimizers))
        run.names = {weight: name for weight, name in of_penalty.selection.names.items() if weight in weights}
        refuse_untrained(repr(self.penalty), run.names)
        trained = (
            weight for optimizer in trainer.optimizers for group in optimizer.param_groups for weight in group["params"]
        )
        run.others = {weight: f"{place}" for place, weight in enumerate(trained) if weight not in run.names}
        if self._loaded:
            kept, self._loaded = self._loaded, {}
            checkpoint.load(run, kept, pl_module)
            if run.points:
                self._result = result_of(self, run)
        elif isinstance(self.strengths, int):
            limit = max(math.ceil(_SEARCH / trainer.num_training_batches), self.strengths * self.epochs // 3)
            run.search, run.start = Search(limit), Snapshot(pl_module)
        else:
            run.strengths = sorted(self.strengths, reverse=self.direction == "down")
        course.enter(self, trainer, pl_module, run)
        known = [f"{strength:.3g}" for strength in (*run.strengths[:1], *run.strengths[1:][-1:])]
        of_penalty.told = " to ".join(known) or "(searching for the largest strength)"
        trainer.should_stop = trainer.should_stop or run.is_over

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            course.enter(self, trainer, pl_module, self._run)
            if self._run.scores:
                self._run.scores.begin_epoch()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is not None and run.owes_end and not run.is_over:
            # The checkpoint is from the last batch of an epoch. Lightning then skips validation and the hooks at the
            # end of that epoch. A strength that needs a score from them takes one more epoch.
            self._end_epoch(trainer, pl_module, run, has_score=run.scores is None)
            course.enter(self, trainer, pl_module, run)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        if run is None or run.is_over:
            return
        steps = progress.steps_now(trainer)
        run.owes_end = steps and progress.ends_epoch(trainer)
        if not run.strengths or not steps:
            return
        if run.is_new or progress.ends_epoch(trainer):
            run.is_new = False
            log_for_callbacks(pl_module, {f"{tags.PATH}/strength": run.strength}, prog_bar=True)
            log_for_callbacks(pl_module, {f"{tags.PATH}/nonzero": float(count_nonzero(run.names))})

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

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is None:
            return
        if not run.is_over and not getattr(trainer, "fast_dev_run", False):
            warn_of_cut(run)
        if run.best in run.snapshots:
            run.snapshots[run.best].restore(pl_module)
        if self._result is not None:
            write_figure(trainer, tags.PATH, self._result.plot, logged.log_step(trainer))

    @override
    def end_run(self, trainer: Trainer, run: PathRun | None) -> None:
        self.penalty.strength = self._strength_before
        state.remove_callback(trainer, self.penalty)
        state.remove_callback(trainer, self._zeros)
        state.remove_callback(trainer, self._behind)
        if run is not None and run.start is not None:  # the fit stopped during the search for the largest strength
            run.start.restore(trainer.lightning_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._run is None else checkpoint.save(self._run)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def _is_relaxed(self) -> bool:
        """Tell whether the path has reached its epochs without the penalty."""
        return self._run is not None and self._run.is_relaxed

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule, run: PathRun, *, has_score: bool) -> None:
        if course.end_epoch(self, trainer, pl_module, run, has_score=has_score):
            self._result = result_of(self, run)
