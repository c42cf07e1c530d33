"""Dropout rates over time."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, final, get_args

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.dropout.rest import ask_training_step, warn_of_unreached
from lightning_reg.callbacks.dropout.run import Run, log_rates
from lightning_reg.callbacks.dropout.sites import Site, depths, listed, select_sites
from lightning_reg.callbacks.trainer import logged, progress, state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_reg.callbacks.trainer.plan import publish
from lightning_reg.callbacks.trainer.refusals import refuse_unless_listed_once
from lightning_reg.callbacks.trainer.timetable import Timetable
from lightning_reg.schedules import Schedule
from lightning_reg.schedules.base import check_schedule
from lightning_reg.selection import Select
from lightning_reg.selection.modules import as_module_select
from lightning_reg.tensorboard import tags

Interval = Literal["step", "epoch"]
_STEPS = ("training_step",)
_OUT_OF_REACH = "{reason}, so no schedule can set it. Use a dropout module."


@final
class DropoutScheduler(DuringFit[Run]):
    r"""Set dropout rates by a schedule, :math:`p_i(t) = c_i\, s(t)` with :math:`c_i = 1` unless `scale` says otherwise.

    It finds the rates of `nn.Dropout` and its variants, of `nn.MultiheadAttention`, and of `nn.LSTM`, `GRU` and `RNN`
    with several layers. It also finds stochastic depth (`drop_prob`, torchvision's `StochasticDepth`), classes with
    dropout in their names, and numbers that a module passes to `F.dropout`, also in helpers, or to attention; the
    numbers may belong to `self.config`. The rate is a function of the tick, so a resumed run continues exactly.
    Evaluation does not change. After training or an exception, every module has the rate with which it was built.
    Modules replaced during training are found: at the next batch if they were registered through torch, otherwise in
    the next epoch.

    In the first batch, two passes of `training_step` with all rates at 0 and two seeds find other randomness. A warning
    names it, with an `attribute=` that may reach it. Gaussian noise is left out. The passes have no gradients and log
    nothing. The module, the gradients and the random state are restored; other effects of the step (files, iterators)
    are not. The passes are left out in manual optimization, and if weights are sharded.

    Under `torch.compile`, a new rate does not recompile. Modules that only drop (`nn.Dropout` and its variants,
    stochastic depth) are compiled with the rate in a tensor. Other modules with a rate (attention, recurrent layers,
    modules that call `F.dropout`, `attribute=`) run outside the graph with all their children, in their own fused
    kernels; `fullgraph=True` refuses them. Without `torch.compile` no kernel changes.

    Logged at the trainer's `log_every_n_steps`: `reg/dropout` (the mean over all scheduled rates, in [0, 1)), and
    `reg.dropout/<layer>` to the loggers if the rates differ.

    Args:
        schedule: :math:`s(t)`, a schedule or any callable from tick to rate in [0, 1).
        select: Which modules: a glob over module names, a list of globs, or a `Select`. Default: all that hold a rate.
            Use two callbacks for different schedules in different layers.
        attribute: An attribute, or a list of attributes, that hold further rates, by name (`"noise_rate"`) or dotted
            (`"config.noise_rate"`); in all modules in which it is a number.
        scale: `False`: every rate is :math:`s(t)`. `True`: :math:`s(t)` times the rate with which the module was built.
            `"depth"`: :math:`s(t)` times :math:`l / L` in block :math:`l` of :math:`L`, in the order of the model; the
            linear rule of stochastic depth. A block is one parent module; each numbered module is its own block.
        interval: The tick: `"step"`, an optimizer step (manual optimization: a batch), or `"epoch"`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if nothing is found or chosen, if a pattern
            matches nothing, if the schedule leaves [0, 1), or if a duration is a share of a run of unknown length; at
            the tick, if a callable leaves [0, 1).
        MisconfigurationException: When training starts, if two schedulers set the same rate.

    Example:
        Dropout at the rates of the model, but none in the first 1000 steps:

        >>> from lightning_reg import Piecewise
        >>> DropoutScheduler(Piecewise((0.0, 1.0), (1000,)), scale=True, select="encoder.*")
        DropoutScheduler(schedule=Piecewise(...), select='encoder.*', attribute=None, scale=True, interval='step')

    Reference:
        Liu et al., Dropout Reduces Underfitting, 2023, arXiv:2303.01500; Morerio et al., Curriculum Dropout, 2017,
        arXiv:1703.06229; for `scale="depth"`: Huang et al., Deep Networks with Stochastic Depth, 2016,
        arXiv:1603.09382.

    """

    def __init__(
        self,
        schedule: Schedule | Callable[[int], float],
        *,
        select: str | Sequence[str] | Select | None = None,
        attribute: str | Sequence[str] | None = None,
        scale: bool | Literal["depth"] = False,
        interval: Interval = "step",
    ) -> None:
        super().__init__()
        check_schedule(schedule, "from tick to rate", " Use Constant(rate) for a constant rate.")
        self.schedule = schedule
        as_module_select(select)
        self.select = select
        listed(attribute)
        self.attribute = attribute
        if not isinstance(scale, bool) and scale != "depth":
            msg = f"`scale` must be True, False or 'depth', got {scale!r}."
            raise ValueError(msg)
        self.scale = scale
        self.interval = _checks.one_of("interval", interval, get_args(Interval))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_unless_listed_once(self, _schedulers(trainer))

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        sites, left_out = self._sites(pl_module)
        _refuse_shared([site for site in sites if site.name not in left_out], _runs(trainer))
        return Run(pl_module, sites, left_out, self._shares, trainer.strategy.root_device)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self is _schedulers(trainer)[-1]:
            warn_of_unreached(pl_module, _found(trainer), _STEPS, _OUT_OF_REACH)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is None:  # a tuner trains for a moment before `on_fit_start` of the callbacks after it
            return
        timetable = Timetable(self.schedule, trainer, pl_module, in_epochs=self.interval == "epoch")
        self._run.schedule = timetable
        if isinstance(timetable.resolved, Schedule):
            self._run.check(timetable.resolved, timetable.total)
        if self is _schedulers(trainer)[-1]:
            plans = [run.plan(repr(item), item.action) for item in _schedulers(trainer) if (run := item.run)]
            publish(trainer, plans, ("module", "rate as built", "dropout"), tags.DROPOUT_SETUP)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._run is not None and (batch_idx == 0 or self._run.changes.seen):
            self._follow_changes(trainer, pl_module, self._run)
        if self._run is not None:
            tick = progress.tick(trainer, pl_module) if self.interval == "step" else trainer.current_epoch
            self._run.set(tick)
            self._run.is_read = logged.logs_now(trainer, first_step=self._run.first_step)
            if self._run.is_first_batch and self is _schedulers(trainer)[-1]:
                ask_training_step(trainer, pl_module, _found(trainer), (batch, batch_idx))
            self._run.is_first_batch = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._run is None or not progress.steps_now(trainer):
            return
        self._run.first_step = False
        if self._run.is_read and self is _schedulers(trainer)[-1]:
            log_rates(trainer, pl_module, _runs(trainer))

    @override
    def end_run(self, trainer: Trainer, run: Run | None) -> None:
        if run is not None:
            run.restore()

    @property
    def action(self) -> str:
        """The entry of the plan for a rate."""
        return (
            repr(self.schedule)
            if isinstance(self.schedule, Schedule)
            else getattr(self.schedule, "__name__", type(self.schedule).__name__)
        )

    def _shares(self, sites: Sequence[Site]) -> list[float]:
        if self.scale == "depth":
            return depths(sites)
        shares = [site.base if self.scale else 1.0 for site in sites]
        if not any(shares):
            msg = (
                f"`scale=True` multiplies the rates with which the modules were built, but all {len(sites)} of them"
                " are 0. Build the model with the rates for a schedule value of 1."
            )
            raise ValueError(msg)
        return shares

    def _sites(self, pl_module: LightningModule) -> tuple[list[Site], dict[str, str]]:
        return select_sites(pl_module, as_module_select(self.select), listed(self.attribute), steps=_STEPS)

    def _follow_changes(self, trainer: Trainer, pl_module: LightningModule, run: Run) -> None:
        """Start again, at the same tick, if the rates changed because the user replaced modules."""
        run.changes.seen = False
        try:
            if run.is_of(self._sites(pl_module)[0]):
                return
            run.restore()
            self._run = None
            new = self.make_run(trainer, pl_module)
        except ValueError as error:
            if not run.all_sites:
                return
            run.restore()
            rank_zero_warn(f"The model has changed, and DropoutScheduler no longer finds a rate to set: {error}")
            new = Run(pl_module, [], {}, self._shares, trainer.strategy.root_device)
        new.schedule, new.first_step, new.is_first_batch = run.schedule, run.first_step, False
        self._run = new


def _schedulers(trainer: Trainer) -> list[DropoutScheduler]:
    return state.callbacks_of(trainer, DropoutScheduler)


def _runs(trainer: Trainer) -> list[Run]:
    return [run for scheduler in _schedulers(trainer) if (run := scheduler.run)]


def _found(trainer: Trainer) -> list[Site]:
    """Return all known rates, chosen or not."""
    sites = {(site.module, site.attribute): site for run in _runs(trainer) for site in run.all_sites}
    return list(sites.values())


def _refuse_shared(sites: Sequence[Site], runs: Sequence[Run]) -> None:
    """Raise if another scheduler already sets one of the rates."""
    taken = {(site.module, site.attribute) for run in runs for site in run.sites}
    for site in sites:
        if (site.module, site.attribute) in taken:
            msg = (
                f"Two DropoutSchedulers set the rate of {site.name!r}. Give them disjoint selections with `select=`, or"
                " join their schedules with Sequence."
            )
            raise MisconfigurationException(msg)
