"""The size of module outputs as a penalty: sparse or small activations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final, get_args

from torch import Tensor, nn
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.dropped import reaches
from lightning_reg.callbacks.penalties.ledger import Term, TermRun, terms
from lightning_reg.callbacks.penalties.listener import Heard, Listener
from lightning_reg.callbacks.penalties.refusals import refuse_optimizers, refuse_sharded_loss
from lightning_reg.callbacks.trainer import progress, state
from lightning_reg.callbacks.trainer.packages import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    has_backward,
    rank_zero_warn,
)
from lightning_reg.callbacks.trainer.plan import Plan, publish
from lightning_reg.callbacks.trainer.refusals import refuse_strategy, refuse_unless_listed_once
from lightning_reg.callbacks.trainer.settings import log_name
from lightning_reg.callbacks.trainer.timetable import Timetable
from lightning_reg.functional.penalties.activity import Norm, mean_activity
from lightning_reg.schedules import Schedule
from lightning_reg.schedules.base import check_schedule
from lightning_reg.selection import Select
from lightning_reg.selection.choice import Choice
from lightning_reg.selection.modules import NamedModule, as_module_select, named_modules, select_modules
from lightning_reg.tensorboard import tags

# Containers of modules and parameters, which are never called.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# Reasons why nothing is added.
_REASONS = {
    Heard.NO_CALL: (
        ", which was not called in the first step. A module is not recorded if others only read its weights, or call"
        " its `forward`: choose the module around it with `select`. If it was compiled and called before `fit`, call"
        " `torch.compiler.reset()` first."
    ),
    Heard.NO_GRAPH: (
        ": in the first step it was called under `torch.no_grad()` only. Leave it out with `select`. If the reason is"
        " activation checkpointing, use `use_reentrant=False`."
    ),
    Heard.NO_GRADIENT: (
        ": nothing that it returned had a gradient, in the whole run. Leave it out with `select`, or train the weights"
        " on which it depends."
    ),
}


@dataclass
class ActivityRun(TermRun):
    """State of one penalty on activations between the start and the end of `fit`."""

    modules: Sequence[NamedModule]
    choice: Choice[NamedModule]
    listener: Listener
    strength: float = 0.0
    """The strength in the current step."""
    is_checked: bool = False
    """Whether the modules that are called are known."""

    @property
    def chosen(self) -> dict[str, nn.Module]:
        """The recorded modules, by name."""
        return _outermost(self.choice.chosen)


@final
class ActivityPenalty(Term[ActivityRun]):
    r"""Add :math:`\lambda \frac{1}{N} \sum_{n,i} |a_{ni}|` of module outputs to the objective: sparse activations.

    :math:`a_{ni}` is unit i of sample n. Samples lie along dimension 0, so this is a mean over the effective batch,
    like the data loss. Every floating tensor counts that a chosen module returns (also in tuples, lists, dictionaries
    and dataclasses) at each call in `training_step`. Later changes in place do not matter. Tensors without a gradient,
    as under `torch.no_grad()`, and evaluation do not count. A tensor without dimensions is one sample.

    The term is added to the loss before each backward pass. It takes the memory of one copy of these activations.
    Compiled code has a graph break at each chosen module, which `fullgraph=True` refuses.

    Logged at the trainer's `log_every_n_steps`: `reg/penalty/activity` (the value of the term, in units of the loss),
    also as a part of `reg/penalty` and `reg/penalty_ratio`, see `Penalty`. If tensor parallelism splits the units of an
    output over ranks, it is the mean of the ranks' values.

    Args:
        strength: :math:`\lambda`, >= 0.
        select: Which modules: a glob over module names, a list of globs, or a `Select`.
        norm: `"l1"` for :math:`|a|`, which makes most units behind a ReLU zero; or `"l2"` for :math:`a^2`.
        schedule: Factor on the strength over the optimizer steps: a schedule, or any callable from optimizer steps so
            far to a factor >= 0; 1 by default.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            duration is a share of a run of unknown length.
        MisconfigurationException: When training starts, in manual optimization, with a line search, or under strategies
            that run the backward pass themselves.

    Example:
        >>> ActivityPenalty(1e-4, select="encoder.*")
        ActivityPenalty(strength=0.0001, select='encoder.*', norm='l1', schedule=None)

    Reference:
        Glorot et al., Deep Sparse Rectifier Neural Networks, 2011, https://proceedings.mlr.press/v15/glorot11a.html.

    """

    def __init__(
        self,
        strength: float,
        *,
        select: str | Sequence[str] | Select,
        norm: Norm = "l1",
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.strength = _checks.non_negative("strength", strength)
        if select is None:
            msg = "`select` must choose modules by a glob over names, a list of globs, or a Select, got None."
            raise TypeError(msg)
        as_module_select(select)
        self.select = select
        self.norm: Norm = norm
        _checks.one_of("norm", norm, get_args(Norm))
        if schedule is not None:
            check_schedule(schedule, "from step to factor")
        self.schedule = schedule

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_unless_listed_once(self, terms(trainer))
        refuse_strategy(trainer, type(self).__name__)
        if not pl_module.automatic_optimization:
            msg = (
                "ActivityPenalty does not work with manual optimization, in which one step may have several losses of"
                " your own. Add the term to your loss in `training_step`, where the output of the module is available."
            )
            raise MisconfigurationException(msg)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> ActivityRun:
        modules = [named for named in named_modules(pl_module) if _returns(named.module, pl_module)]
        choice = select_modules(
            modules, as_module_select(self.select), fits=lambda _: True, kind="module that returns something"
        )
        chosen = _outermost(choice.chosen).values()
        listener = Listener(pl_module, chosen, partial(mean_activity, norm=self.norm))
        return ActivityRun(log_name(self, terms(trainer)), modules, choice, listener)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:  # a tuner trains for a moment before `on_fit_start` of the callbacks after it
            refuse_optimizers(trainer, type(self).__name__, "loss")
            if self.schedule is not None:
                self._run.schedule = Timetable(self.schedule, trainer, pl_module)
            others = [term for term in terms(trainer) if isinstance(term, ActivityPenalty)]
            if self is others[-1]:
                plans = [_plan(run, repr(term), term.strength) for term in others if (run := term.run)]
                publish(trainer, plans, ("module", "kind", "penalties"), tags.ACTIVITY_SETUP)
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is None:
            return
        run.listener.take()  # drop the terms of a batch for which `training_step` returned None
        run.strength = self.strength * run.factor(progress.tick(trainer, pl_module))
        run.listener.is_wanted = run.strength > 0

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        run = self._run
        if run is None:
            return
        value = run.listener.take()
        # If the loss has no gradient, backward will raise. A loss without parameters drops the batch.
        if not loss.requires_grad or not (reaches(loss, frozenset(), are_sharded=True) or has_backward(pl_module)):
            return
        share = state.share_of_step(trainer, pl_module)
        ledger = self.ledger_if_read(trainer, run)
        if ledger is run.ledger:
            ledger.add_loss(state.unscaled_loss(trainer, loss), share)
        refuse_sharded_loss(loss, type(self).__name__)
        if value is not None:
            # Not by `alpha`, which would be rounded to the precision of the loss.
            loss.add_(state.scale_loss(trainer, value * (run.strength * share)).to(loss.device))
        if ledger is not None:
            known = loss.new_zeros((), requires_grad=False).float() if value is None else value.detach()
            ledger.add_value(run.name, run.strength * known.to(loss.device), share)
        if not run.is_checked and progress.steps_now(trainer):
            run.is_checked = True
            _warn(run, Heard.NO_CALL)
            _warn(run, Heard.NO_GRAPH)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._run is not None:
            self._run.listener.take()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:  # not earlier, because frozen weights may be trained later
            _warn(self._run, Heard.NO_GRADIENT)

    @override
    def end_run(self, trainer: Trainer, run: ActivityRun | None) -> None:
        if run is not None:
            run.listener.remove()


def _returns(module: nn.Module, root: nn.Module) -> bool:
    """Tell whether a module is called; strategies call `training_step` of the root instead."""
    return module is not root and not isinstance(module, _CONTAINERS)


def _outermost(modules: Sequence[NamedModule]) -> dict[str, nn.Module]:
    """Return modules by name; a wrapper (`torch.compile`, activation checkpointing) replaces its content."""
    found: dict[str, nn.Module] = {}
    for named in modules:
        found.setdefault(named.name, named.module)
    return found


def _plan(run: ActivityRun, settings: str, strength: float) -> Plan:
    return Plan(
        settings,
        shapes={name: type(module).__name__ for name, module in _outermost(run.modules).items()},
        actions=dict.fromkeys(run.chosen, f"{run.name} {strength:g}"),
        left_out=run.choice.left_out,
    )


def _warn(run: ActivityRun, heard: Heard) -> None:
    """Warn of the modules with this state of their record."""
    for name, module in run.chosen.items():
        if run.listener.heard[module] == heard:
            rank_zero_warn(f"ActivityPenalty adds nothing for {name!r}{_REASONS[heard]}")
