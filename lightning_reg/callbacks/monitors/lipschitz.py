"""Lower and upper bounds of the network's Lipschitz constant during training."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Self, final

from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.monitors.base import Monitor
from lightning_reg.callbacks.monitors.certificate import Certificate
from lightning_reg.callbacks.monitors.lipschitz_run import Found, Run
from lightning_reg.callbacks.monitors.lipschitz_target import InputTransform, find_target
from lightning_reg.callbacks.trainer import logged, progress, state
from lightning_reg.callbacks.trainer.loggers import (
    log_for_callbacks,
    write_figure,
    write_layers_and_few_scalars,
    write_scalars,
)
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer
from lightning_reg.callbacks.trainer.target import check_target
from lightning_reg.metrics.certified_accuracy import check_radii
from lightning_reg.tensorboard import tags


@final
class LipschitzMonitor(Monitor[Run]):
    r"""Log a lower and an upper bound of the network's Lipschitz constant.

    The Lipschitz constant is the smallest L with :math:`\|f(x) - f(y)\|_2 \le L \|x - y\|_2` for all inputs. It cannot
    be computed for networks of realistic size, so the monitor logs bounds:

    - `reg/lipschitz_lower`: a lower bound, the largest norm of the input Jacobian over `samples` samples of the current
      training batch and over ranks. `functional.jacobian_norm` computes it, and explains the effect of kinks.
    - `reg/lipschitz_upper`: an upper bound for all inputs, from `functional.lipschitz_bound`. It is infinite if the
      network has operations without a known bound. A warning names these operations.
    - `reg/lipschitz_log10`: the decimal logarithm of the upper bound.
    - `reg/lipschitz_gap`: the upper bound divided by the lower bound, a ratio >= 1. The constant lies between the
      bounds. If the gap is large, it may be far from both.
    - `reg.lipschitz/<layer>`: an upper bound of each layer, if there are at most 16 layers. TensorBoard's page
      "Regularization" shows any number of layers. Convolutions are bounded for the image size of the batch.
      `RegularizationMonitor` estimates their norm over images of any size, which can be larger.
    - `reg/certified_accuracy@<radius>`: logged at the end of each validation for each radius in `certify`. It is the
      share of the validation set that stays correctly classified under any change of a sample within that radius
      (`metrics.CertifiedAccuracy`). It describes the weights that validation uses, averaged weights included, and
      counts each sample once on any number of ranks. If no upper bound is known, it is zero. If matplotlib is
      installed, TensorBoard shows the curve up to the largest radius in the image `reg/certified_accuracy`.

    With several monitors, the tags of the whole network end with the target: `reg/lipschitz_lower/<target>`.

    Both bounds are computed after the first and the last step. In between, the lower bound is computed at logging steps
    of the trainer, and the upper bound, the gap and the layers after the last step of an epoch. All values describe the
    weights after that step, in eval mode. They use the step axis of `self.log`. `trainer.callback_metrics` contains
    them, so other callbacks can read them.

    The monitor does not affect training: the weights at the end are the same, bit for bit. It computes in float32
    without autocast. In true half precision, it computes the lower bound in the module's own precision.

    Args:
        target: Name of the module to bound, such as `"network.encoder"`. Its `forward` must take one tensor, unless
            `input_transform` returns all arguments. Default: the LightningModule itself.
        every_n_epochs: Epochs between two upper bounds, >= 1.
        every_n_steps: Smallest number of optimizer steps between two lower bounds, >= 1. It also limits upper bounds
            if epochs are shorter. Lower bounds are computed at logging steps only, so 1 means every logging step. With
            the default 250, both bounds take less than 2 % of the training time in typical networks.
        samples: Largest number of samples for a lower bound on each rank, >= 1. The first samples of the batch are
            used.
        budget: Largest share of the training time for upper bounds, in [0, 1]. The first five seconds are free. If the
            norm of a layer would exceed the budget, a cheaper bound replaces it. The cheaper bound is equally certain,
            but can be several times larger. A warning reports this, and `reg/lipschitz_cheap_norms` counts the replaced
            norms. Default 0.05.
        input_transform: A function from a batch to the target's input, shape (batch, ...), or to a tuple or dict of all
            arguments of its `forward`. All floating-point tensors together count as one input. Whole numbers, such as
            labels, stay fixed, unless `all_labels` is set. Default: the first floating-point tensor in the batch.
        certify: Radii for the certified accuracy, each >= 0, in the unit of the target's input. The target must then be
            a classifier that returns logits, shape (batch, classes). Default: no certified accuracy.
        label_transform: A function from a batch to the classes of its samples, whole numbers from 0 to K - 1 for K
            logits, shape (batch,), for `certify`. Default: the second entry of the batch.
        all_labels: Whether the upper bound must hold for any whole numbers in place of those in the batch, such as the
            labels of a conditional critic. An embedding then counts with all its rows, see `lipschitz_bound`. Default
            False.
        prog_bar: Whether to show both bounds in the progress bar.
        layout: Whether to write the charts of TensorBoard's page "Custom Scalars", see `RegularizationMonitor`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range. When training starts, if no module has the name `target`.
        MisconfigurationException: When training starts, if there is no logger, if the strategy hides the weights, if
            the batch contains no input for the target, or if the target cannot be evaluated on it. In validation with
            `certify`, if a batch does not have one class for each sample.

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
        self.target = check_target(target)
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
                msg = f"Two LipschitzMonitors have target={target!r} and would log under the same tags. Remove one."
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
        if run is not None and run.inputs is None:  # check before the first step, so errors come early
            run.inputs = run.target.samples(batch, self.samples, self.input_transform)
            run.check(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        if run is None or not progress.steps_now(trainer):
            return
        first = run.last_step is None
        run.last_step = step = logged.log_step(trainer)
        if not logged.logs_now(trainer, first_step=first):
            return
        run.inputs = run.target.samples(batch, self.samples, self.input_transform)
        upper = first or (self._ends_interval(trainer) and self._is_due(step, run.upper_step))
        if upper or (logged.writes_now(trainer) and self._is_due(step, run.lower_step)):
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
        # All ranks have the same numbers. `sync_dist` avoids Lightning's warning about unreduced values.
        pl_module.log_dict(
            numbers, on_step=False, on_epoch=True, logger=False, batch_size=1, sync_dist=True, reduce_fx="max"
        )
        step = logged.log_step(trainer)
        write_scalars(trainer, numbers, step)
        write_figure(trainer, f"{tags.CERTIFIED_ACCURACY}{run.suffix}", partial(certificate.plot, shares), step)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Do not wait for `on_train_end`: callbacks that average weights may have replaced the weights by then.
        if progress.ends_training(trainer):
            self._finish(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)  # needed if the run was stopped after `on_train_epoch_end`

    def _finish(self, trainer: Trainer) -> None:
        """Write the values of the last step that are still missing."""
        run = self._run
        if run is not None and run.last_step is not None:
            found = run.measure(trainer, upper=True)
            _write(trainer, found, run.last_step)

    def _ends_interval(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0 and progress.ends_epoch(trainer)

    def _is_due(self, step: int, before: int | None) -> bool:
        """Return whether an interval has ended since the step `before`. A resumed run keeps the same intervals."""
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
    """Return whether `target` is part of the target `other`, whose monitor then writes the numbers of the layers."""
    return target is not None and (other is None or target.startswith(f"{other}."))
