"""Weight decay: chosen weights shrink in each optimizer step, apart from the gradient."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final, get_args

from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.decay.kinds import Kind
from lightning_reg.callbacks.decay.refusals import (
    refuse_decay_of_optimizers,
    refuse_lbfgs,
    refuse_missing_rate,
    refuse_two_callbacks,
)
from lightning_reg.callbacks.decay.run import Run
from lightning_reg.callbacks.trainer import logged, progress, state
from lightning_reg.callbacks.trainer.guarded_steps import ActsInSteps, Guard
from lightning_reg.callbacks.trainer.loggers import log
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.plan import publish
from lightning_reg.callbacks.trainer.refusals import refuse_strategy, refuse_unless_listed_once
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps, Turn
from lightning_reg.callbacks.trainer.timetable import Timetable
from lightning_reg.functional.tensors.chunks import NumberOrTensor
from lightning_reg.schedules import Schedule
from lightning_reg.schedules.base import check_schedule
from lightning_reg.selection import Select, as_select, named_weights, select_weights
from lightning_reg.tensorboard import tags


@final
class WeightDecay(ActsInSteps[Run]):
    r"""Shrink weights by a share in each optimizer step, apart from the gradient: AdamW's decay, for any optimizer.

    With :math:`\eta` the learning rate of the weight's parameter group in this step and :math:`v = \lambda s(t)`:

    - `"decoupled"`: :math:`w \leftarrow w - \eta v w` before the step. Adam with this decay equals AdamW with
      `weight_decay` :math:`\lambda` on the chosen weights and 0 on the others, up to float rounding.
    - `"independent"`: :math:`w \leftarrow w - (\eta / \eta_0) v w` before the step, with :math:`\eta_0` the
      `initial_lr` set by a scheduler, else the first rate. The best :math:`\lambda` then does not depend on the
      learning rate.
    - `"corrected"`: :math:`w \leftarrow w - \eta (\eta / \eta_{max}) v w` before the step, with :math:`\eta_{max}` the
      largest rate so far. Weights and gradients then keep their ratio while the rate falls.
    - `"cautious"`: subtracts :math:`\eta v w` after the step, w from before it, but only from entries that the step
      did not move away from zero.

    As in AdamW, a step skipped by the fp16 scaler decays nothing, and no step decays a weight without a gradient. Every
    optimizer step takes the whole share, even after a last accumulation window with fewer batches. For Prodigy and
    D-Adaptation, the learning rate is `lr` times the rate that they find, as in their own decay.

    Logged at the trainer's `log_every_n_steps`, on the step axis of `self.log`: `reg/weight_decay`, the share that a
    weight lost in that step, the largest over parameter groups. A second callback logs `reg/weight_decay-1`. The table
    before training (TensorBoard's text `reg/setup_decay`) shows for each weight in how many epochs the decay alone
    would shrink it to 1/e at the initial rates.

    Args:
        value: :math:`\lambda`, >= 0.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions, so no bias and no norm scale.
        schedule: :math:`s(t)`, a schedule or any callable from optimizer steps so far to a factor >= 0; 1 by default.
        kind: One of the four kinds above.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing, or a
            duration is a share of a run of unknown length.
        MisconfigurationException: When training starts, if an optimizer or a second `WeightDecay` also decays a chosen
            weight, with LBFGS and schedule-free optimizers, without `lr`, and under DeepSpeed and XLA; in the first
            steps, with an optimizer that changes weights before it computes gradients (SAM).

    Example:
        DINO's schedule, from 0.04 to 0.4 along a cosine:

        >>> from lightning_reg import Cosine
        >>> WeightDecay(0.4, schedule=Cosine(0.1, 1.0, 1.0))
        WeightDecay(value=0.4, select=None, schedule=Cosine(start=0.1, end=1.0, duration=1.0), kind='decoupled')

    Reference:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, arXiv:1711.05101; corrected: Defazio, Why
        Gradients Rapidly Increase Near the End of Training, 2025, arXiv:2506.02285; cautious: Chen et al., Cautious
        Weight Decay, 2025, arXiv:2510.12402; the schedule: Caron et al., Emerging Properties in Self-Supervised Vision
        Transformers, 2021, arXiv:2104.14294.

    """

    def __init__(
        self,
        value: float,
        *,
        select: str | Sequence[str] | Select | None = None,
        schedule: Schedule | Callable[[int], float] | None = None,
        kind: Kind = "decoupled",
    ) -> None:
        super().__init__()
        self.value = _checks.non_negative("value", value)
        as_select(select)
        self.select = select
        if schedule is not None:
            check_schedule(schedule, "from step to factor")
        self.schedule = schedule
        self.kind: Kind = kind
        _checks.one_of("kind", kind, get_args(Kind))
        self._saved: list[dict[str, Any]] = []
        """The rates of a checkpoint, or of the previous run."""

    @property
    @override
    def state_key(self) -> str:
        # Each of several callbacks, for different layers, has its own state.
        return f"{type(self).__qualname__}({self.select!r}, {self.kind!r})"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_unless_listed_once(self, _decays(trainer))
            refuse_strategy(trainer, type(self).__name__)
            self._saved = []  # of the previous run

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        # Not later: FSDP2 replaces parameters once a forward pass has run, and the sanity check runs one.
        selection = select_weights(named_weights(pl_module, state.original_shapes(trainer)), as_select(self.select))
        position = _decays(trainer).index(self)
        name = f"{tags.WEIGHT_DECAY}-{position}" if position else tags.WEIGHT_DECAY
        return Run(name, self.value, self.kind, selection, Guard(selection, type(self).__name__, "decayed"))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is not None:
            _refuse_optimizers(run, trainer.optimizers)
        super().on_train_start(trainer, pl_module)
        if run is None:  # a tuner trains for a moment before `on_fit_start`
            return
        refuse_two_callbacks([(decay, other.selection) for decay in _decays(trainer) if (other := decay.run)])
        if self.schedule is not None:
            run.schedule = Timetable(self.schedule, trainer, pl_module)
        run.restore(self._saved)
        if self is _decays(trainer)[-1]:
            pairs = [(decay, other) for decay in _decays(trainer) if (other := decay.run)]
            steps = progress.steps_in_epoch(trainer, pl_module)
            plans = [other.plan(repr(decay), trainer.optimizers, steps) for decay, other in pairs]
            publish(trainer, plans, ("weight", "shape", "weight decay"), tags.DECAY_SETUP)

    @override
    def follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is not None:
            _refuse_optimizers(run, trainer.optimizers)
            before = partial(_shrink, run, trainer, pl_module)
            run.steps = run.steps or AroundSteps(
                run.after_update, before, turn=Turn.UPDATE, name=type(self).__name__, once=True
            )
            run.steps.add(trainer.optimizers)

    @override
    def decays(self, trainer: Trainer, pl_module: LightningModule) -> dict[Tensor, str]:
        if self._run is None:
            return {}
        actions = self._run.actions(trainer.optimizers, progress.steps_in_epoch(trainer, pl_module))
        return {weight: f"WeightDecay, {action}" for weight, action in actions.items()}

    @override
    def decay_shares(self, trainer: Trainer, pl_module: LightningModule) -> dict[Tensor, NumberOrTensor]:
        tick = progress.tick(trainer, pl_module)
        return {} if self._run is None else self._run.coming_shares(trainer.optimizers, tick)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        if run is None or not progress.steps_now(trainer):
            return
        if run.shares and logged.logs_now(trainer, first_step=run.first_step):
            log(trainer, pl_module, {run.name: run.largest_share()})
        run.first_step = False
        run.shares.clear()

    @override
    def end_run(self, trainer: Trainer, run: Run | None) -> None:
        if run is not None and run.steps is not None:
            run.steps.remove()
            self._saved = run.state()

    @override
    def state_dict(self) -> dict[str, Any]:
        # After `fit`, the state at its end: the trainer may still save a checkpoint.
        return {"rates": self._saved if self._run is None else self._run.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict["rates"]


def _decays(trainer: Trainer) -> list[WeightDecay]:
    return state.callbacks_of(trainer, WeightDecay)


def _refuse_optimizers(run: Run, optimizers: Sequence[Optimizer]) -> None:
    """Raise if an optimizer cannot work with the decay."""
    refuse_lbfgs(optimizers)
    refuse_missing_rate(optimizers, run.selection.names)
    refuse_decay_of_optimizers(optimizers, run.selection.names)


def _shrink(run: Run, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
    position = next(index for index, other in enumerate(trainer.optimizers) if other is optimizer)
    run.before_update(position, optimizer, progress.tick(trainer, pl_module))
