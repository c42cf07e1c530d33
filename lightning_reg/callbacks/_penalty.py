"""The abstract penalty: how a term of the objective reaches the weights, with one strength in every way of training."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks import _compatibility, _plan, _trainer
from lightning_reg.callbacks._ledger import Ledger
from lightning_reg.callbacks._run import Run, log_name
from lightning_reg.callbacks._targets import Targets, add_scaled, evaluate
from lightning_reg.functional._shards import local_parts
from lightning_reg.schedules import Schedule, resolve
from lightning_reg.selection import Select, as_select, named_weights, select_weights

Mode = Literal["loss", "grad"]
_MODES = ("loss", "grad")


class Penalty(Callback, ABC):
    r"""A term of the training objective, :math:`J = L + s(t)\,\lambda\,\Omega(w)`; subclass it for your own.

    A subclass defines `penalty`, from weights to a scalar, and has `mode="loss"` and `mode="grad"` from it. For every
    optimizer step the update is that of :math:`J`, with :math:`L` the mean loss over the effective batch, whatever the
    accumulation, precision, strategy and number of devices.

    Logged at the trainer's `log_every_n_steps`, on the step axis of `self.log`: `reg/penalty/<name>` (the value of the
    term, in units of the loss), `reg/penalty` (the sum over all penalties) and `reg/penalty_ratio` (that sum over the
    data loss; automatic optimization only). The name is that of the class; a second one of the same name gets `-1`.

    Args:
        strength: :math:`\lambda`, >= 0.
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Frozen weights are left alone for as long as they are frozen.
        mode: `"loss"` adds the term to the loss before each backward pass. `"grad"` adds its gradient to `.grad` before
            each optimizer step, after unscaling and all-reduce and before Lightning's clipping: cheaper, and the one
            for manual optimization and FSDP1. Both train to the same weights.
        schedule: :math:`s(t)`, a schedule or any callable from the number of optimizer steps so far to a factor >= 0.
            Default: always 1.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `strength` is negative or not finite, or `mode` unknown; when training starts, if `select`
            chooses nothing or one of its patterns matches nothing, or a share of an endless run is asked for.
        MisconfigurationException: When training starts, if the penalty can't work with the trainer's strategy.

    Example:
        >>> class QuarticPenalty(Penalty):
        ...     def penalty(self, weights):
        ...         return sum(weight.pow(4).sum() for weight in weights)
        >>> QuarticPenalty(1e-4, select="encoder.*", mode="grad")
        QuarticPenalty(strength=0.0001, select='encoder.*', mode='grad', schedule=None)

    """

    elementwise: ClassVar[bool] = False
    """Whether `penalty` is a sum over single entries, so that each rank can compute its part from its shards.

    Without it, FSDP2 gathers every chosen weight for `penalty`, and FSDP1 is refused."""

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
        self.mode = _checks.one_of("mode", mode, _MODES)
        if schedule is not None and not callable(schedule):
            msg = f"`schedule` must be a schedule or a callable from step to factor, got {schedule!r}."
            raise TypeError(msg)
        self.schedule = schedule
        self.ledger = Ledger()
        self._run: Run | None = None

    @abstractmethod
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        r"""Return :math:`\Omega(w)`, the term at strength 1.

        Args:
            weights: The chosen weights, at least one; this rank's parts of them if `elementwise` under FSDP.

        Returns:
            A tensor of one entry, differentiable in the weights.

        """

    @property
    def overlaps_weight_decay(self) -> bool:
        """Whether the term shrinks weights as an optimizer's `weight_decay` does, so that both are hardly meant."""
        return False

    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        """Add `factor` times the gradient of `penalty` to `grads`, in place.

        This one asks autograd; a subclass that knows its gradient can do without the graph and the copy.
        """
        with torch.enable_grad():
            leaves = [weight.detach().requires_grad_() for weight in weights]
            found = torch.autograd.grad(self._evaluate(leaves), leaves, materialize_grads=True)
        torch._foreach_add_(local_parts(grads), local_parts(list(found)), alpha=factor)

    @override
    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        arguments = (f"{name}={getattr(self, name)!r}" for name in names if hasattr(self, name))
        return f"{type(self).__name__}({', '.join(arguments)})"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        name = type(self).__name__
        _compatibility.refuse_strategy(trainer, name)
        _compatibility.refuse_mode(trainer, pl_module, name, self.mode, elementwise=self.elementwise)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not later: FSDP2 replaces parameters once a forward pass has run, and the sanity check runs one.
        selection = select_weights(named_weights(pl_module, _trainer.original_shapes(trainer)), as_select(self.select))
        self._run = Run(
            log_name(self, _penalties(trainer)),
            selection,
            Targets(selection),
            # Through the loss, a gradient would reach DDP a second time for weights that it has marked as unused.
            add_gradient_later=self.mode == "grad" or _trainer.marks_unused_parameters(trainer),
        )
        self.ledger.clear()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:  # a tuner trains for a moment before `on_fit_start` of the callbacks after it
            return
        name = type(self).__name__
        _compatibility.refuse_line_search(trainer, name)
        if self.overlaps_weight_decay and self.strength:
            _compatibility.warn_of_weight_decay(self._run.targets.settings(trainer.optimizers, "weight_decay"), name)
        if self.schedule is not None:
            self._run.schedule = resolve(self.schedule, _trainer.total_ticks(trainer))
        penalties = _penalties(trainer)
        if self is penalties[-1]:
            _plan.publish(trainer, [plan for penalty in penalties if (plan := penalty.plan(trainer))])

    def plan(self, trainer: Trainer) -> _plan.Plan | None:
        """Return what this penalty does to each weight; `None` if no training has begun."""
        if self._run is None:
            return None
        return self._run.plan(repr(self), f"{self._run.name} {self.strength:g}", trainer.optimizers)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Now, because manual optimization then freezes one network after the other (`toggle_optimizer`).
        if not pl_module.automatic_optimization:
            self._record(trainer, pl_module)

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # An optimizer that evaluates its closure many times (LBFGS) starts anew with each evaluation.
        if self._run is not None:
            self._run.pending = 0.0
            self.ledger.clear()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        run = self._run
        if run is None or not loss.requires_grad:  # without a gradient, backward is about to raise: let it
            return
        share = _trainer.share_of_step(trainer, pl_module)
        run.pending += share
        ledger = self._ledger_if_read(trainer, run)
        if ledger is self.ledger and pl_module.automatic_optimization:
            ledger.add_loss(_trainer.unscaled_loss(trainer, loss), share)
        if self.mode == "grad":
            return
        strength = self.strength * run.factor(_trainer.tick(trainer, pl_module))
        weights = run.targets.of(trainer.optimizers)
        value: Tensor | None = None
        if strength and weights:
            with torch.set_grad_enabled(not run.add_gradient_later):
                value = self._evaluate(weights)
            loss.add_(_trainer.scale_loss(trainer, value).to(loss.device), alpha=strength * share)
        if ledger:
            ledger.penalties[run.name] = 0.0 if value is None else strength * value.detach()

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        run = self._run
        if run is None:
            return
        # No share: `training_step` returned None, so no backward pass ran and there is no step to take part in.
        share = run.pending if pl_module.automatic_optimization else 1.0
        run.pending = 0.0
        if not share or not run.add_gradient_later:
            return
        if pl_module.automatic_optimization:
            self._record(trainer, pl_module)
        strength = self.strength * run.factor(_trainer.tick(trainer, pl_module))
        weights = run.targets.of([optimizer])
        if strength and weights:
            scale = _trainer.gradient_scale(trainer, optimizer)
            add_scaled(self.add_gradient, weights, strength * share, scale)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._run is not None and _trainer.steps_now(trainer):
            self._run.first_step = False
            self.ledger.log(pl_module)
            self.ledger.clear()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._run = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._run = None

    def _ledger_if_read(self, trainer: Trainer, run: Run) -> Ledger | None:
        """Return where values go if they are read: to the first penalty, before which nothing has changed the loss."""
        return _penalties(trainer)[0].ledger if _trainer.logs_now(trainer, first_step=run.first_step) else None

    @torch.no_grad()
    def _record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the term for the ledger, if it is read and not in the loss anyway."""
        run = self._run
        if run is None or self.mode == "loss" or (ledger := self._ledger_if_read(trainer, run)) is None:
            return
        strength = self.strength * run.factor(_trainer.tick(trainer, pl_module))
        weights = run.targets.of(trainer.optimizers)
        value = _trainer.sum_flat_shards(trainer, self._evaluate(weights)) if strength and weights else 0.0
        ledger.penalties[run.name] = strength * value

    def _evaluate(self, weights: list[Tensor]) -> Tensor:
        return evaluate(self.penalty, weights, elementwise=self.elementwise)


def _penalties(trainer: Trainer) -> list[Penalty]:
    return _trainer.callbacks_of(trainer, Penalty)  # type: ignore[type-abstract]  # mypy wants no abstract class here
