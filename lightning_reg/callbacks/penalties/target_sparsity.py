"""A share of zeros instead of a strength."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.penalties.quota import Quota
from lightning_reg.callbacks.trainer import logged, progress, state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.loggers import log
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.refusals import refuse_flat_shards
from lightning_reg.callbacks.trainer.timetable import Timetable, factor_at
from lightning_reg.functional.penalties.counts import zero_share
from lightning_reg.schedules import Cosine, Schedule
from lightning_reg.schedules.base import check_schedule
from lightning_reg.tensorboard import tags

Scope = Literal["global", "layer"]


@dataclass
class Aim:
    """The share of zeros over the steps of one fit, and the tag under which it is logged."""

    tag: str
    target: float
    schedule: Callable[[int], float] | None = None
    """The user's schedule, with durations in ticks."""

    def at(self, tick: int) -> float:
        """Return the wanted share at `tick`."""
        return self.target * factor_at(self.schedule, tick, is_share=True)


@final
class TargetSparsity(DuringFit[Aim]):
    r"""Train to a share of zeros: choose the strength of a proximal penalty in each step so that the share is met.

    Each unit has a strength at which it vanishes. In each step the strength is the least one with which the proximal
    step makes a share :math:`s(t)\,p` of all selected weights, or groups for `GroupLassoPenalty`, zero. So the share is
    met from the first step on, with any optimizer, learning rate and loss. Weights that the data's gradient brings back
    replace others. A step depends only on weights, optimizer and step number, so a resumed run equals the uninterrupted
    one without any saved state.

    Exact except for ties. Above a million weights, a sample of a million is used, and the share is within 0.002; if
    `scope` or `floor` treats layers separately, a quarter of that in each layer, and 0.004. It can be larger than the
    target if weights without a gradient are already zero (behind dead units), or if the strength of `penalty` makes
    more weights zero. With several optimizers, the weights of each meet the target.

    Logged at the trainer's `log_every_n_steps`, beside the penalty's values: `reg/target_sparsity/strength` (of the
    last step; the largest if layers have different ones), `reg/target_sparsity/target` (:math:`s(t)\,p`) and
    `reg/target_sparsity/reached` (the share of zeros of all weights together); a second callback logs
    `reg/target_sparsity-1/strength` and so on.

    Args:
        penalty: An `L1Penalty`, `ElasticNetPenalty` or `GroupLassoPenalty` with `mode="proximal"` and no schedule, not
            in the trainer's callbacks itself. Its strength is the least strength used; with 0 only the target decides.
        target: :math:`p`, the share of zeros, in (0, 1).
        scope: `"global"`: all selected weights together have the share, so less important layers lose more. `"layer"`:
            each weight has it.
        floor: The least share of units that is left in each weight, in [0, 1 - p], because a layer of zeros would cut
            the network. Other layers lose more instead. 0 for no limit.
        schedule: :math:`s(t)`, a schedule or any callable from optimizer steps so far to a factor in [0, 1]; by default
            `Cosine(0.0, 1.0, 0.5)`, from 0 to 1 in the first half of the run.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
        MisconfigurationException: When training starts, under FSDP1, and for the reasons of the penalty.

    Example:
        >>> from lightning_reg import L1Penalty
        >>> TargetSparsity(L1Penalty(0.0, select="encoder.*", mode="proximal"), 0.9).target
        0.9

    Reference:
        Zhu & Gupta, To Prune, or Not to Prune, 2018, arXiv:1710.01878, for the ramp.

    """

    def __init__(
        self,
        penalty: Penalty,
        target: float,
        *,
        scope: Scope = "global",
        floor: float = 0.0,
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(penalty, Penalty):
            msg = f"`penalty` must be a penalty with mode='proximal', got {penalty!r}."
            raise TypeError(msg)
        if penalty.mode != "proximal" or penalty.schedule is not None:
            msg = (
                f"`penalty` must have mode='proximal', which makes zeros, and no schedule, got {penalty!r}."
                " Give the schedule to TargetSparsity."
            )
            raise ValueError(msg)
        if not penalty.has_vanishing_strengths:
            msg = (
                "`penalty` must make zeros and define the strengths at which they appear (`vanishing_strengths`),"
                f" got {penalty!r}. Use L1Penalty, ElasticNetPenalty with l1_ratio > 0, or GroupLassoPenalty."
            )
            raise ValueError(msg)
        self.penalty = penalty
        self.target = _checks.between("target", target, 0, 1)
        self.scope: Scope = scope
        _checks.one_of("scope", scope, get_args(Scope))
        self.floor = _checks.in_range("floor", floor, 0, 1)
        if self.floor + self.target > 1 + 1e-12:
            msg = (
                f"`floor`, the least share that is left in each layer, must be at most 1 - `target`, {1 - target:g},"
                f" got {floor}."
            )
            raise ValueError(msg)
        if schedule is not None:
            check_schedule(schedule, "from step to factor")
        self.schedule = schedule

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_flat_shards(trainer, "TargetSparsity")
        state.insert_callback(trainer, self.penalty, after=self)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Aim:
        position = state.callbacks_of(trainer, TargetSparsity).index(self)
        return Aim(f"{tags.TARGET_SPARSITY}-{position}" if position else tags.TARGET_SPARSITY, self.target)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is None:  # a tuner trains for a moment before `on_fit_start`
            return
        self._run.schedule = Timetable(self.schedule or Cosine(0.0, 1.0, 0.5), trainer, pl_module)
        self.penalty.aim_at(Quota(self._run.at, self.scope == "layer", self.floor))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        aim, run = self._run, self.penalty.run
        if aim is None or run is None or not progress.steps_now(trainer):
            return
        if not logged.logs_now(trainer, first_step=trainer.global_step <= 1):
            return
        weights = run.targets.of(trainer.optimizers)
        if weights:
            dims = self.penalty.unit_dims(weights)
            values = {
                "strength": self.penalty.strength if run.needed is None else _largest(run.needed),
                "target": aim.at(max(progress.tick(trainer, pl_module) - 1, 0)),
                "reached": zero_share(weights, 0.0, None if dims is None else list(dims.values())),
            }
            log(trainer, pl_module, {f"{aim.tag}/{name}": value for name, value in values.items()})

    @override
    def end_run(self, trainer: Trainer, run: Aim | None) -> None:
        state.remove_callback(trainer, self.penalty)


def _largest(needed: Tensor | dict[Tensor, Tensor]) -> Tensor:
    return torch.stack(list(needed.values())).amax() if isinstance(needed, dict) else needed
