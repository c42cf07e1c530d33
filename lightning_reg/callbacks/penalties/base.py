"""The abstract penalty: how a term of the objective reaches the weights, with one strength in every way of training."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.penalties.attributes import OwnTensors
from lightning_reg.callbacks.penalties.company import begin_together, follow_steps
from lightning_reg.callbacks.penalties.dropped import reaches
from lightning_reg.callbacks.penalties.formula import Formula, Memories
from lightning_reg.callbacks.penalties.ledger import Term, terms
from lightning_reg.callbacks.penalties.memory import Memory
from lightning_reg.callbacks.penalties.optimality import residuals
from lightning_reg.callbacks.penalties.proximal_step import fill_gradients, shrink
from lightning_reg.callbacks.penalties.quota import Quota, strength_for
from lightning_reg.callbacks.penalties.refusals import (
    refuse_directions,
    refuse_missing_operator,
    refuse_mode,
    refuse_optimizers,
    refuse_sharded_loss,
)
from lightning_reg.callbacks.penalties.run import Run
from lightning_reg.callbacks.penalties.targets import Targets, add_scaled
from lightning_reg.callbacks.trainer import progress, state
from lightning_reg.callbacks.trainer.held_weights import HeldWeights, has_gradient
from lightning_reg.callbacks.trainer.packages import Callback, LightningModule, Trainer, has_backward
from lightning_reg.callbacks.trainer.refusals import refuse_flat_shards, refuse_strategy, refuse_unless_listed_once
from lightning_reg.callbacks.trainer.settings import log_name
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.callbacks.trainer.timetable import Timetable
from lightning_reg.callbacks.trainer.unseen_steps import UnseenSteps
from lightning_reg.functional.penalties.counts import check_dim
from lightning_reg.functional.tensors.shards import has_dtensors
from lightning_reg.functional.tensors.weights import check_fits
from lightning_reg.schedules import Schedule
from lightning_reg.schedules.base import check_schedule
from lightning_reg.selection import Select, as_select, named_weights, select_weights

Mode = Literal["loss", "grad", "proximal"]

# The key of checkpoints under which penalties save their memory.
_MEMORIES = "lightning_reg.penalty_memory"


class Penalty(Term[Run], Formula):
    r"""A term of the training objective, :math:`J = L + s(t)\,\lambda\,\Omega(w)`; subclass it for your own.

    A subclass defines `penalty`, from weights to a scalar, which gives `mode="loss"` and `mode="grad"`. It also defines
    `proximal` for `mode="proximal"`, and `remember` if the term depends on earlier weights, such as the initial ones.
    Every optimizer step minimises :math:`J`, with :math:`L` the mean loss over the effective batch, with any
    accumulation, precision, strategy and number of devices.

    Logged at the trainer's `log_every_n_steps`, on the step axis of `self.log`: `reg/penalty/<name>` (the value of the
    term, in units of the loss), `reg/penalty` (the sum over all penalties) and `reg/penalty_ratio` (that sum over the
    absolute data loss; automatic optimization only). Above 1, the penalties outweigh the data. The name comes from the
    class; a second callback of the class gets `-1`.

    With `mode="proximal"`, `reg/optimality/<name>` is logged, which is 0 at a minimum: the largest distance of the
    negative gradient of the whole step, before clipping, from the subdifferential of the term, divided by the strength;
    by entry, or the 2-norm by group. With noisy gradients of small batches it levels off at their largest error,
    divided by the strength. If two proximal penalties share weights, each sees its own term only.

    Args:
        strength: :math:`\lambda`, >= 0.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Weights are left alone while they are frozen.
        mode: `"loss"` adds the term to the loss before each backward pass. `"grad"` adds its gradient to `.grad` before
            each optimizer step, after unscaling and all-reduce and before Lightning's clipping: cheaper, and the one
            for manual optimization and FSDP1. Both train to the same weights. `"proximal"` applies the proximal
            operator, times the optimizer's step size of each weight (see `register_step_size`), after each step: the
            same minimum, and the only mode with exact zeros.
        schedule: :math:`s(t)`, a schedule or any callable from optimizer steps so far to a factor >= 0; 1 by default.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if a pattern of `select` matches nothing,
            `strength` is infinite in the precision of a weight, or a duration is a share of a run of unknown length.
        MisconfigurationException: When training starts, if the penalty can't work with this way of training.

    Example:
        >>> class QuarticPenalty(Penalty):
        ...     def penalty(self, weights):
        ...         return sum(weight.pow(4).sum() for weight in weights)
        >>> QuarticPenalty(1e-4, select="encoder.*", mode="grad")
        QuarticPenalty(strength=0.0001, select='encoder.*', mode='grad', schedule=None)

    """

    def __init__(
        self,
        strength: float,
        *,
        select: str | Sequence[str] | Select | None = None,
        mode: Mode = "loss",
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.strength = _checks.non_negative("strength", strength)
        as_select(select)
        self.select = select
        self.mode = _checks.one_of("mode", mode, get_args(Mode))
        if schedule is not None:
            check_schedule(schedule, "from step to factor")
        self.schedule = schedule
        self._memory = Memory()
        self._own = OwnTensors()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_memory": Memory(), "_own": OwnTensors()}

    @override
    def recalled(self, weights: Sequence[Tensor]) -> tuple[()] | tuple[Memories]:
        return (self._memory.of(weights),) if self.remembers else ()

    @property
    def current_strength(self) -> float:
        """The strength in the current step. A `penalty` that is not proportional to the strength needs it."""
        return self.strength if self._run is None else self._run.strength

    def chosen(self) -> dict[Tensor, str]:
        """Return the weights that the penalty acts on in the fit that is running, with their names."""
        return {} if self._run is None else self._run.selection.names

    def unit_dims(self, weights: Sequence[Tensor]) -> dict[Tensor, int] | None:
        """Return the dimension of each weight along which its units lie; `None` if each entry is a unit.

        The dimension of the output units depends on the layer. Outside a fit, layers are unknown, and it is `unit_dim`.
        """
        if self.unit_dim is None:
            return None
        return {weight: self.unit_dim if self._run is None else self._run.unit_dims[weight] for weight in weights}

    @override
    def decays(self, trainer: Trainer, pl_module: LightningModule) -> dict[Tensor, str]:
        if not (self._run and self.overlaps_weight_decay and (self.strength or self._run.told)):
            return {}
        return dict.fromkeys(self.chosen(), self._run.action(self.strength))

    @override
    def changes(self) -> dict[Tensor, Change]:
        return dict.fromkeys(
            self.chosen() if self.mode == "proximal" else (), "operator" if self.keeps_zeros else "moves"
        )

    def aim_at(self, quota: Quota) -> None:
        """Until `fit` ends, choose the strength of each step so that it meets `quota`."""
        if self._run is not None:
            self._run.quota = quota

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_unless_listed_once(self, _penalties(trainer))
            refuse_strategy(trainer, type(self).__name__)
            refuse_mode(trainer, pl_module, type(self).__name__, self.mode, elementwise=self.elementwise)
            if self.remembers:
                refuse_flat_shards(trainer, f"{type(self).__name__}, which remembers weights,")
            self._memory = Memory()
            self._own.watch(self)
            if self.mode == "proximal" and type(self).proximal is Formula.proximal:
                refuse_missing_operator(type(self).__name__)

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        # Not later: FSDP2 replaces parameters once a forward pass has run, and the sanity check runs one.
        selection = select_weights(named_weights(pl_module, state.original_shapes(trainer)), as_select(self.select))
        check_dim((weight.parameter for weight in selection.chosen), self.unit_dim)
        name, parameters = type(self).__name__, [weight.parameter for weight in selection.weights]
        unit = self.unit_dim
        return Run(
            log_name(self, terms(trainer)),
            selection,
            Targets(selection, HeldWeights(parameters, f"penalized by {name}")),
            {} if unit is None else {weight.parameter: weight.dims[unit] for weight in selection.chosen},
            # Through the loss, a gradient would reach DDP a second time for weights that it has marked as unused.
            acts_at_step=self.mode != "loss" or state.marks_unused_parameters(trainer),
            are_sharded=state.has_flat_shards(trainer) or has_dtensors(parameters),
            unseen=UnseenSteps(name),
            strength=self.strength,
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module)
        super().on_train_start(trainer, pl_module)  # after the plan, because it shows all weight decay

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:  # a tuner trains for a moment before `on_fit_start` of the callbacks after it
            return
        self._refuse_optimizers(trainer, self._run)
        check_fits(f"{type(self).__name__}.strength", self.strength, self._run.targets.of(trainer.optimizers))
        if self.mode == "proximal" or self.unit_dim is not None:
            trained = set(self._run.targets.of(trainer.optimizers))
            refuse_directions(
                (each for each in self._run.selection.chosen if each.parameter in trained), type(self).__name__
            )
        if self.schedule is not None:
            self._run.schedule = Timetable(self.schedule, trainer, pl_module)
        # Not in `on_fit_start`, after which some strategies load the checkpoint.
        chosen, name = self._run.selection.chosen, type(self).__name__
        self._own.are_parts = self._run.are_sharded
        self._own.put_back(self, chosen[0].parameter.device)
        if self.remembers:
            self._memory.begin(self.remember, chosen, name, sharded=self.elementwise, offload=self.offloads)
        penalties = [penalty for penalty in _penalties(trainer) if penalty.run]
        if self is penalties[-1]:
            begin_together(trainer, penalties)

    def _refuse_optimizers(self, trainer: Trainer, run: Run) -> None:
        own = [optimizer for optimizer in trainer.optimizers if self.has_one_step_size and run.targets.of([optimizer])]
        refuse_optimizers(trainer, type(self).__name__, self.mode, own)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is None:
            return
        if run.hooks is not None:
            run.hooks.rest()
        if run.unseen.meets(trainer.optimizers):
            self._refuse_optimizers(trainer, run)
            run.unseen.remember(run.targets.of(trainer.optimizers))
            if self.mode == "proximal":
                follow_steps(trainer, pl_module, _penalties(trainer))
        # Now, because manual optimization later freezes one network after the other (`toggle_optimizer`).
        if not pl_module.automatic_optimization:
            self._record(trainer, pl_module)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        run = self._run
        if run is None or not loss.requires_grad:  # without a gradient, backward will raise
            return
        run.unseen.backward()
        held = run.targets.held.of(trainer.optimizers)
        if not reaches(loss, held, are_sharded=run.are_sharded) and not has_backward(pl_module):
            return
        # With sharded weights, `.grad` is empty before the last batch of a step.
        if run.pending and not run.are_sharded and not has_gradient(trainer.optimizers):
            run.forget()
        share = state.share_of_step(trainer, pl_module)
        run.pending += share
        ledger = self.ledger_if_read(trainer, run)
        if ledger is run.ledger and pl_module.automatic_optimization:
            ledger.add_loss(state.unscaled_loss(trainer, loss), share)
        if self.mode != "loss":
            return
        refuse_sharded_loss(loss, type(self).__name__)
        strength = run.strength_at(self.strength, progress.tick(trainer, pl_module))
        weights = run.targets.of(trainer.optimizers)
        value: Tensor | None = None
        if strength and weights:
            with torch.set_grad_enabled(not run.acts_at_step):
                value = self.value(weights)
            # No `alpha`: it would be rounded to the precision of the loss.
            loss.add_(state.scale_loss(trainer, value * (strength * share)).to(loss.device))
        if ledger:
            ledger.penalties[run.name] = 0.0 if value is None else strength * value.detach()

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._run is None:
            return
        self._act_on_gradients(trainer, pl_module, optimizer, self._run)
        # After the penalties that add to the gradient: residuals need the gradient of the whole step.
        if self is _penalties(trainer)[-1] and (ledger := self.ledger_if_read(trainer, self._run)):
            ledger.add_residuals(residuals(trainer, pl_module, optimizer, _penalties(trainer)))

    def _act_on_gradients(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, run: Run) -> None:
        # Without a share, no backward pass ran, because `training_step` returned None. The penalty then does nothing.
        share = run.pending if pl_module.automatic_optimization else 1.0
        run.pending, run.share = 0.0, share
        if self.mode != "proximal" or state.may_skip_steps(trainer):
            run.unseen.see(optimizer, has_gradient=has_gradient([optimizer]))
        if not share or not run.acts_at_step:
            return
        if pl_module.automatic_optimization:
            self._record(trainer, pl_module)
        if self.mode == "proximal" or not has_gradient([optimizer]):
            return
        weights = run.targets.of([optimizer])
        strength = run.strength_at(self.strength, progress.tick(trainer, pl_module))
        if strength and weights:
            add_scaled(self.add_gradient, weights, strength * share, state.gradient_scale(trainer, optimizer))

    def before_update(self, optimizer: Optimizer) -> None:
        """Let `optimizer` keep a step size also for weights without a gradient, in a step that happens."""
        if self._run is not None and has_gradient([optimizer]):
            fill_gradients(self._run.targets.of([optimizer]))

    def after_update(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, moved: AbstractSet[Tensor]
    ) -> None:
        """Take the proximal step that belongs to the step of `optimizer`, which has moved `moved`."""
        run = self._run
        if run is None:
            return
        run.unseen.see(optimizer, has_gradient=bool(moved))
        share = run.take_share(automatic=pl_module.automatic_optimization)
        if not moved:
            return
        tick = progress.tick(trainer, pl_module)
        weights = [weight for weight in run.targets.of([optimizer]) if weight in moved]
        strength: float | Tensor
        if run.quota and share and weights:
            least = run.strength_at(self.strength, tick)
            needed = strength_for(
                run.quota, tick, least * share, self.vanishing_strengths, optimizer, weights, self.unit_dims(weights)
            )
            strength = needed / share
            run.needed = strength if not strength.ndim else dict(zip(weights, strength.unbind(), strict=True))
        else:
            run.strength = self.strength * run.largest_factor(tick)
            run.rounded_away.measure(
                self.proximal_of, optimizer, weights, run.strength, self.recalled, elementwise=self.elementwise
            )
            strength = run.strength_at(self.strength, tick)
        if share and weights and (isinstance(strength, Tensor) or strength):  # reading a tensor would wait for it
            shrink(self.proximal, optimizer, weights, strength * share, self.recalled, elementwise=self.elementwise)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run:
            run.rounded_away.warn(type(self).__name__)
        if run and run.acts_at_step:
            run.unseen.refuse({optimizer: run.targets.of([optimizer]) for optimizer in trainer.optimizers})

    # Under a key of the checkpoint instead of in `state_dict`: with that, Lightning refuses two penalties of one class.
    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kept: dict[str, Any] = {"memory": self._memory.state()} if self.remembers else {}
        if type(self).state_dict is Callback.state_dict:  # else the user saves by other means
            kept["attributes"] = self._own.state(self)
        if any(kept.values()) and trainer.is_global_zero:
            checkpoint.setdefault(_MEMORIES, {})[self._memory_key(trainer)] = kept

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get(_MEMORIES, {}).get(self._memory_key(trainer), {})
        self._own.load(kept.get("attributes", {}))
        if self.remembers:
            # A tuner restores the checkpoint of step 0.
            self._memory.load(kept.get("memory") or None, has_begun=checkpoint["global_step"] > 0)

    def _memory_key(self, trainer: Trainer) -> str:
        alike = [
            penalty
            for penalty in _penalties(trainer)
            if type(penalty) is type(self) and repr(penalty.select) == repr(self.select)
        ]
        key, position = f"{type(self).__qualname__}({self.select!r})", alike.index(self) if self in alike else 0
        return f"{key}-{position}" if position else key

    @override
    def end_run(self, trainer: Trainer, run: Run | None) -> None:
        super().end_run(trainer, run)
        self._memory.end()
        if run is not None and run.hooks is not None:
            run.hooks.remove()

    @torch.no_grad()
    def _record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the term for the ledger, if it is read and not part of the loss."""
        run = self._run
        if run is None or self.mode == "loss" or (ledger := self.ledger_if_read(trainer, run)) is None:
            return
        current = run.strength_at(self.strength, progress.tick(trainer, pl_module))
        strength = current if run.needed is None else run.needed
        weights = run.targets.of(trainer.optimizers)
        ledger.penalties[run.name] = 0.0
        if isinstance(strength, dict):
            terms = [strength[weight] * self.value([weight]) for weight in weights if weight in strength]
            ledger.penalties[run.name] = torch.stack(terms).sum() if terms else 0.0
        elif weights and (isinstance(strength, Tensor) or strength):
            value = self.value(weights)
            ledger.penalties[run.name] = strength * state.sum_flat_shards(trainer, value)


def _penalties(trainer: Trainer) -> list[Penalty]:
    return state.callbacks_of(trainer, Penalty)  # type: ignore[type-abstract]  # mypy wants no abstract class here
