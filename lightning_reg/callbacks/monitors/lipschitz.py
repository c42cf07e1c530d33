"""Bounds of the network's Lipschitz constant from both sides."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Self, final

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.monitors.base import Monitor
from lightning_reg.callbacks.monitors.certificate import Certificate
from lightning_reg.callbacks.monitors.lipschitz_run import Found, Run
from lightning_reg.callbacks.monitors.lipschitz_target import InputTransform, find_target
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.loggers import (
    log_for_callbacks,
    write_figure,
    write_layers_and_few_scalars,
    write_scalars,
)
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer
from lightning_reg.metrics.certified_accuracy import check_radii
from lightning_reg.tensorboard import tags


@final
class LipschitzMonitor(Monitor[Run]):
    r"""Log an upper and a lower bound of how much the network stretches differences of its inputs.

    The Lipschitz constant, the smallest L with :math:`\|f(x) - f(y)\|_2 \le L \|x - y\|_2` for all inputs, cannot be
    computed for networks of realistic size. These bounds of it are logged:

    - `reg/lipschitz_lower`: a lower bound, the largest norm of the input Jacobian over `samples` samples of the current
      training batch, and over ranks (`functional.jacobian_norm`, which also explains the effect of kinks).
    - `reg/lipschitz_upper`: an upper bound for all inputs (`functional.lipschitz_bound`). It is infinite if the network
      has operations without a known bound; a warning names them. `reg/lipschitz_log10` is its decimal logarithm.
    - `reg/lipschitz_gap`: upper over lower, a ratio >= 1. The constant is somewhere in between. A large gap means that
      it may be far from both bounds.
    - An upper bound of each layer, on TensorBoard's page "Regularization"; up to 16 layers also as
      `reg.lipschitz/<layer>`. Convolutions are bounded for the image size of the batch. The norm over images of any
      size, which `RegularizationMonitor` estimates from below, can be larger.
    - `reg/certified_accuracy@<radius>` for each radius in `certify`, at the end of each validation: the share of the
      validation set that is classified correctly under any change of a sample within that radius
      (`metrics.CertifiedAccuracy`), with the weights that validation uses, averaged ones too, and each sample once on
      any number of ranks. It is zero without a known upper bound. With matplotlib, TensorBoard has it as a curve up to
      the largest radius, in the image `reg/certified_accuracy`.

    With several monitors the tags contain the target: `reg/lipschitz_lower/<target>`.

    Both bounds are computed after the first and the last step. In between, the lower bound is computed at the trainer's
    logging steps, and the upper bound, gap and layers after the last step of epochs. All values belong to the weights
    after that step, in eval mode. They are on the step axis of `self.log` and in `trainer.callback_metrics`.

    The monitor changes nothing: training with it ends in the same weights, bit for bit. It computes in float32 without
    autocast; in true half precision the lower bound is computed in the module's own precision.

    Args:
        target: Name of the module to bound, such as `"network.encoder"`; it must be a function of one tensor. Default:
            the `forward` of the LightningModule.
        every_n_epochs: Epochs between two upper bounds, >= 1.
        every_n_steps: Least number of optimizer steps between two lower bounds, >= 1, and between two upper bounds if
            epochs are shorter. Lower bounds are computed at logging steps only; 1 means every logging step. With the
            default, both cost less than 2 % of the training time in typical networks.
        samples: Largest number of samples for a lower bound on each rank, >= 1: the first ones of the batch.
        budget: Largest share of the training time for upper bounds, in [0, 1]; the first five seconds are free. Norms
            of layers that would exceed it, by their size and the speed so far, are bounded in a cheaper way, equally
            certain but several times larger. A warning says so, and `reg/lipschitz_cheap_norms` counts them. Default
            0.05.
        input_transform: A function from a batch to the target's input, shape (batch, ...), or to a tuple or dict of all
            arguments of its `forward`. Floating-point numbers count as one input; whole numbers, such as labels, are
            held fixed, unless `all_labels`. Default: the first tensor of floating-point numbers in the batch.
        certify: Radii, each >= 0, in the unit of the target's input. The target must then be a classifier that returns
            logits, shape (batch, classes).
        label_transform: A function from a batch to the classes of its samples, shape (batch,). Default: the second
            entry of the batch.
        all_labels: Whether the upper bound holds for any whole numbers in place of those in the batch, such as the
            labels of a conditional critic: an embedding then counts with all its rows, see `lipschitz_bound`. Default
            False.
        prog_bar: Whether to show both bounds in the progress bar.
        layout: Whether to write the charts of TensorBoard's page "Custom Scalars", see `RegularizationMonitor`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range; when training starts, if no module is called `target`.
        MisconfigurationException: When training starts, if there is no logger, if the strategy spreads the weights, or
            if the target is not a function of one tensor that the batch has.

    Example:
        >>> monitor = LipschitzMonitor(target="network", every_n_epochs=5)
        >>> monitor.every_n_steps, monitor.samples
        (250, 8)

    """

    def __init__(  # noqa: PLR0913  # independent settings
        self,
        *,
        target: str | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int = 250,
        samples: int = 8,
        budget: float = 0.05,
        input_transform: InputTransform | None = None,
        certify: Sequence[float] | None = None,
        label_transform: InputTransform | None = None,
        all_labels: bool = False,
        prog_bar: bool = False,
        layout: bool = True,
    ) -> None:
        super().__init__()
        if target is not None and not isinstance(target, str):
            msg = f"`target` must be the name of a module or None, got {target!r}."
            raise TypeError(msg)
        self.target = target
        self.every_n_epochs = _checks.count("every_n_epochs", every_n_epochs, 1)
        self.every_n_steps = _checks.count("every_n_steps", every_n_steps, 1)
        self.samples = _checks.count("samples", samples, 1)
        self.budget = _checks.in_range("budget", budget, 0, 1)
        if input_transform is not None:
            _checks.function("input_transform", input_transform, "a function of a batch or None")
        self.input_transform = input_transform
        self.certify = None if certify is None else check_radii("certify", certify)
        if label_transform is not None:
            _checks.function("label_transform", label_transform, "a function of a batch or None")
        self.label_transform = label_transform
        self.all_labels = _checks.boolean("all_labels", all_labels)
        self.prog_bar = _checks.boolean("prog_bar", prog_bar)
        self.layout = _checks.boolean("layout", layout)

    @override
    def refuse_shared_tags(self, monitors: Sequence[Self]) -> None:
        targets = [monitor.target for monitor in monitors]
        for target in targets:
            if targets.count(target) > 1:
                msg = f"Two LipschitzMonitors have target={target!r} and would log under the same tags. Leave one out."
                raise MisconfigurationException(msg)

    @override
    def watch(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        others = [monitor.target for monitor in state.callbacks_of(trainer, LipschitzMonitor) if monitor is not self]
        return Run(
            find_target(pl_module, self.target, has_transform=self.input_transform is not None),
            suffix=f"/{self.target or 'all'}" if others else "",
            budget=self.budget,
            all_labels=self.all_labels,
            has_layers=not any(_is_inside(self.target, other) for other in others),
        )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is not None and run.inputs is None:  # before the first step, so that errors come early
            run.inputs = run.target.samples(batch, self.samples, self.input_transform)
            run.check(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        if run is None or not state.steps_now(trainer):
            return
        first = run.last_step is None
        run.last_step = step = state.log_step(trainer)
        if not state.logs_now(trainer, first_step=first):
            return
        run.inputs = run.target.samples(batch, self.samples, self.input_transform)
        upper = first or (self._ends_interval(trainer) and self._is_due(step, run.upper_step))
        if upper or (state.writes_now(trainer) and self._is_due(step, run.lower_step)):
            found = run.measure(trainer, upper=upper)
            self._log(pl_module, found)
            _write(trainer, found, step)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is not None and self.certify is not None and not trainer.sanity_checking:
            run.certificate = Certificate(run.target, self.certify)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        run = self._run
        if run is not None and run.certificate is not None:
            count = partial(state.rows_not_repeated, trainer, batch_idx, dataloader_idx)
            run.certificate.add(batch, self.input_transform, self.label_transform, count)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is None or run.certificate is None or self.certify is None:
            return
        certificate, run.certificate = run.certificate, None
        shares = certificate.shares(trainer)
        if not shares:
            return
        numbers = {f"{tags.CERTIFIED_ACCURACY}@{radius:g}{run.suffix}": shares[radius] for radius in self.certify}
        # All ranks have the same numbers; Lightning warns of values that are not reduced.
        pl_module.log_dict(
            numbers, on_step=False, on_epoch=True, logger=False, batch_size=1, sync_dist=True, reduce_fx="max"
        )
        step = state.log_step(trainer)
        write_scalars(trainer, numbers, step)
        write_figure(trainer, f"{tags.CERTIFIED_ACCURACY}{run.suffix}", partial(certificate.plot, shares), step)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In `on_train_end`, callbacks that average weights may already have replaced the weights.
        if state.ends_training(trainer):
            self._finish(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)  # needed if the run was stopped after `on_train_epoch_end`

    def _finish(self, trainer: Trainer) -> None:
        """Write the missing values of the last step."""
        run = self._run
        if run is not None and run.last_step is not None:
            found = run.measure(trainer, upper=True)
            _write(trainer, found, run.last_step)

    def _ends_interval(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0 and state.ends_epoch(trainer)

    def _is_due(self, step: int, before: int | None) -> bool:
        """Tell whether one of the steps since `before` ends an interval, so that a resumed run keeps the intervals."""
        return before is None or (step + 1) // self.every_n_steps > (before + 1) // self.every_n_steps

    def _log(self, pl_module: LightningModule, found: Found) -> None:
        shown = (tags.LIPSCHITZ_LOWER, tags.LIPSCHITZ_UPPER)
        for in_bar in (False, True):
            values = {tag: number for tag, number in found.summary.items() if tag.startswith(shown) == in_bar}
            if values:
                log_for_callbacks(pl_module, values, prog_bar=in_bar and self.prog_bar)


def _write(trainer: Trainer, found: Found, step: int) -> None:
    write_scalars(trainer, found.summary, step)
    write_layers_and_few_scalars(trainer, "lipschitz", found.layers, step)


def _is_inside(target: str | None, other: str | None) -> bool:
    """Tell whether the monitor of another target writes the numbers of these layers."""
    return target is not None and (other is None or target.startswith(f"{other}."))
