"""Statistics of the weights over training, for TensorBoard and every other logger."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.monitors.base import Monitor
from lightning_reg.callbacks.monitors.dashboard import write_hyperparameters
from lightning_reg.callbacks.monitors.picture import History
from lightning_reg.callbacks.monitors.regularization_run import Run
from lightning_reg.callbacks.monitors.updates import Updates
from lightning_reg.callbacks.trainer import logged, progress, state
from lightning_reg.callbacks.trainer.decays import shares_by_optimizers
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.loggers import log_for_callbacks, names_a_value
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer
from lightning_reg.functional.tensors.chunks import NumberOrTensor
from lightning_reg.metrics import Sparsity, SpectralNorm, WeightNorm
from lightning_reg.metrics.reading import layer_name
from lightning_reg.selection import Select, Weight, as_select, named_weights, select_weights
from lightning_reg.tensorboard import tags

_LANCZOS_ITERATIONS = 5


@final
class RegularizationMonitor(Monitor[Run]):
    r"""Log weight norms, sparsity and spectral norms: of each layer, over the layers, and of all layers together.

    The monitor writes each metric at the trainer's `log_every_n_steps`, and at the first and the last step of a run.
    The values describe the weights after that optimizer step, and use the step axis of `self.log`. If a callback or a
    scheduler reads a metric at the end of an epoch, as with `monitor=`, the metric is measured there, too.

    - `reg/<metric>`: all layers together. `reg/<metric>_min`, `_median` and `_max`: over the layers.
      `trainer.callback_metrics` contains these, so `EarlyStopping(monitor="reg/sparsity")` and `ModelCheckpoint` can
      use them.
    - The numbers of each layer, under the name of its weight without `.weight`. TensorBoard's page "Regularization"
      shows them for any number of layers. With `per_layer`, every logger also receives a scalar
      `reg.<metric>/<layer>`.
    - `reg/<metric>_over_layers`: a histogram over the layers (TensorBoard only). It starts at the first step at which a
      value is not zero.
    - `reg/update_ratio_min`, `_median` and `_max`, and the ratio of each layer, with `updates`:
      :math:`\|\Delta w\|_2 / \|w\|_2` of the whole optimizer step, where w is the weight before the step. The ratio of
      a skipped step is 0.
    - `reg/decay_ratio_min`, `_median` and `_max`, and the ratio of each layer, with `updates`: the share of w that
      decay alone removes in that step. The decay comes from `WeightDecay`, an optimizer with decoupled decay, or SGD.
    - `reg.weights/<layer>`: a histogram of the layer's weights at the end of epochs, with `histograms` (TensorBoard
      only).

    The monitor measures weights as the forward pass uses them: parametrized, pruned, and gathered under FSDP2. It does
    not affect training: the weights at the end are the same, bit for bit. `spectral_norm` is an estimate from below.
    For convolutions it covers images of any size, see `SpectralNorm(iterations=5, input_size="any")`. The bounds of
    `LipschitzMonitor` hold for the image size of the batch, and can be smaller.

    Args:
        metrics: A mapping from names to metrics of `lightning_reg.metrics`, or to your own metrics with the same
            `update`. Default: `weight_norm` (:math:`\|w\|_2`, in the unit of weights), `sparsity` (share of exact
            zeros, in [0, 1]) and `spectral_norm` (:math:`\sigma`, the largest factor by which a layer stretches its
            input).
        select: The weights to measure: a glob, a list of globs, or a `Select`. Default: every trainable weight of two
            or more dimensions. Weights are left out while they are frozen.
        per_layer: Which layers to write as scalars. `True`: all layers. A selection: its layers. `"auto"`: none, but
            the page "Regularization" shows all layers. `False`: none, and the page has no layers either.
        histograms: Whether to write histograms of the weights.
        every_n_epochs: Epochs between two histograms of the weights, >= 1.
        updates: Whether to log how far optimizer steps move the weights. This copies the weights at logged steps.
        layout: Whether to write the charts of TensorBoard's page "Custom Scalars". `False` keeps your own charts;
            `lightning_reg.tensorboard.layout()` returns ours for merging.
        hparams: Whether to show the settings of this package's callbacks on TensorBoard's page "HPARAMS", beside the
            hyperparameters that your modules save. `False` leaves that page to Lightning.
        html: Whether to save a heatmap of all layers against steps as `reg.html`, one file for any browser, without
            TensorBoard. Each logger has it in its folder, beside logs or checkpoints. It is saved at the end of
            training, and at the end of an epoch if ten minutes have passed. It contains a selection of the steps, so it
            stays below 1 MB for 200 layers.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or if `html=True` is combined with `per_layer=False`. When training
            starts, if a pattern of a selection matches nothing.
        MisconfigurationException: When training starts, if there is no logger, or if the strategy hides the weights.

    Example:
        >>> RegularizationMonitor(select="encoder.*", histograms=True, every_n_epochs=5)
        RegularizationMonitor(metrics=None, select='encoder.*', ..., histograms=True, every_n_epochs=5, ...)

    """

    def __init__(  # noqa: PLR0913  # independent switches
        self,
        *,
        metrics: Mapping[str, Metric] | None = None,
        select: str | Sequence[str] | Select | None = None,
        per_layer: bool | str | Sequence[str] | Select = "auto",
        histograms: bool = False,
        every_n_epochs: int = 1,
        updates: bool = False,
        layout: bool = True,
        hparams: bool = True,
        html: bool = False,
    ) -> None:
        super().__init__()
        self.metrics = None if metrics is None else _checked(metrics)
        as_select(select)
        self.select = select
        if per_layer is None:
            msg = "`per_layer` must be True, False, 'auto' or a selection, got None."
            raise TypeError(msg)
        if not isinstance(per_layer, bool):
            as_select(per_layer)
        self.per_layer = per_layer
        self.histograms = _checks.boolean("histograms", histograms)
        self.every_n_epochs = _checks.count("every_n_epochs", every_n_epochs, 1)
        self.updates = _checks.boolean("updates", updates)
        self.layout = _checks.boolean("layout", layout)
        self.hparams = _checks.boolean("hparams", hparams)
        self.html = _checks.boolean("html", html)
        if html and per_layer is False:
            msg = (
                "`html` needs the numbers of single layers, but `per_layer=False` leaves them out, got html=True and"
                " per_layer=False. Leave `per_layer` at 'auto', which writes no scalars for single layers."
            )
            raise ValueError(msg)

    @override
    def refuse_shared_tags(self, monitors: Sequence[Self]) -> None:
        names = [name for monitor in monitors for name in monitor._metrics]  # noqa: SLF001  # of this class
        for name in names:
            if names.count(name) > 1:
                msg = (
                    f"Two RegularizationMonitors log a metric {name!r} under the same tags. Rename the metrics of one,"
                    f" as in `metrics={{'head_{name}': ...}}`, or join their selections."
                )
                raise MisconfigurationException(msg)

    @override
    def watch(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        weights = select_weights(named_weights(pl_module), as_select(self.select)).chosen
        copies = {name: metric.clone().to(pl_module.device) for name, metric in self._metrics.items()}
        if self.hparams:
            write_hyperparameters(trainer, pl_module)
        return Run(
            weights,
            copies,
            Updates(weights) if self.updates else None,
            self._shown(weights),
            has_layers=self.per_layer is not False,
            history=History(has_page=self.html),
        )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is None or run.updates is None or not progress.steps_now(trainer):
            return
        if self._looks_now(trainer, run, first_step=run.last_step is None):
            decay: dict[Tensor, NumberOrTensor] = {**shares_by_optimizers(trainer.optimizers)}
            for callback in state.callbacks_of(trainer, DuringFit):
                decay.update(callback.decay_shares(trainer, pl_module))
            run.updates.begin(decay)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        if run is None or not progress.steps_now(trainer):
            return
        first = run.last_step is None
        run.last_step = logged.log_step(trainer)
        if not self._looks_now(trainer, run, first_step=first):
            return
        log_for_callbacks(pl_module, run.measure().summary)
        if logged.writes_now(trainer) or run.last_step == 0:
            run.write(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:
            return
        if progress.ends_training(trainer):
            # Training may stop in mid-epoch. Do not wait for `on_train_end`: callbacks that average weights may have
            # replaced the weights by then.
            self._run.measure()
        self._run.history.give(trainer, now=False)
        if self.histograms and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._run.write_histograms(trainer, logged.log_step(trainer) - 1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run:
            self._run.write(trainer)
            self._run.history.give(trainer, now=True)

    def _looks_now(self, trainer: Trainer, run: Run, *, first_step: bool) -> bool:
        """Return whether a logger, or a callback at the end of an epoch, reads the values of the current step."""
        if first_step or logged.writes_now(trainer) or progress.may_end_training(trainer):
            return True
        return progress.ends_epoch(trainer) and names_a_value(trainer, run.tags())

    @property
    def _metrics(self) -> Mapping[str, Metric]:
        return _defaults() if self.metrics is None else self.metrics

    def _shown(self, weights: Sequence[Weight]) -> frozenset[str]:
        """Return the layers whose numbers are written as scalars."""
        if self.per_layer is False or self.per_layer == "auto":
            return frozenset()
        if self.per_layer is True:
            return frozenset(map(layer_name, weights))
        return frozenset(map(layer_name, select_weights(weights, as_select(self.per_layer)).chosen))


def _checked(metrics: object) -> dict[str, Metric]:
    if not isinstance(metrics, Mapping) or not all(isinstance(metric, Metric) for metric in metrics.values()):
        msg = f"`metrics` must be a mapping from names to torchmetrics.Metric, got {metrics!r}."
        raise TypeError(msg)
    for name in metrics:
        if not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)) or name in tags.TAKEN:
            msg = (
                f"`metrics` must have names of letters, digits, '_', '.' and '-' other than {', '.join(tags.TAKEN)},"
                f" got {name!r}."
            )
            raise ValueError(msg)
    if not metrics:
        msg = "`metrics` must hold at least one metric, got none. Leave it out for the default ones."
        raise ValueError(msg)
    return dict(metrics)


def _defaults() -> dict[str, Metric]:
    return {
        "weight_norm": WeightNorm(),
        "sparsity": Sparsity(),
        "spectral_norm": SpectralNorm(iterations=_LANCZOS_ITERATIONS, input_size="any"),
    }
