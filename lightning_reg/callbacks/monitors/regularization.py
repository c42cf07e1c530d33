"""What regularization did to the weights, for TensorBoard and every other logger."""

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
from lightning_reg.callbacks.trainer import state
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
    r"""Log how large, how sparse and how expansive the weights are: of each layer, over layers, and of all together.

    For each metric these are written at the trainer's `log_every_n_steps`, on the step axis of `self.log`, with the
    values after that optimizer step; also at the first step of a run and at the last one. At the end of an epoch they
    are measured, too, if a callback or a scheduler names one of them, as in `monitor=`:

    - `reg/<metric>`: all layers together; `reg/<metric>_min`, `_median`, `_max`: over the layers. They are in
      `trainer.callback_metrics`, too, so `EarlyStopping(monitor="reg/sparsity")` and `ModelCheckpoint` can use them.
    - Each layer, a weight by its name without `.weight`: for TensorBoard's page "Regularization" one tensor a metric,
      of any number of layers; as scalars `reg.<metric>/<layer>` for every logger only if `per_layer` asks for them.
    - `reg/<metric>_over_layers`: a histogram over the layers (TensorBoard only), from the first step on at which one
      of them is not zero.
    - With `updates`, :math:`\|\Delta w\|_2 / \|w\|_2` of the whole optimizer step, w before it: `reg/update_ratio_min`,
      `_median`, `_max`, and that of each layer. 0 where a step was skipped. Beside them, `reg/decay_ratio_...`:
      the share of w that decay alone takes in that step, by `WeightDecay` or by an optimizer whose decay goes past the
      gradient or is that of SGD.
    - `reg.weights/<layer>`: a histogram of the layer's weights at the end of epochs, if asked for (TensorBoard only).

    Weights are those that the forward pass uses (parametrized, pruned), whole ones of FSDP2. Nothing is changed:
    training with the monitor ends in the same weights, bit for bit. `spectral_norm` is a lower estimate, of
    convolutions for images of any size, see `SpectralNorm(iterations=5, input_size="any")`; the bounds of
    `LipschitzMonitor` are for the size of the images in the batch, and can be smaller.

    Args:
        metrics: From a name to a metric, `lightning_reg.metrics` or your own with such an `update`. Default:
            `weight_norm` (:math:`\|w\|_2`, in the unit of weights), `sparsity` (share of exact zeros, in [0, 1]) and
            `spectral_norm` (:math:`\sigma`, the factor by which a layer stretches its input at most).
        select: Which weights: a glob, a list of globs, or a `Select`. Default: every trainable weight of two or more
            dimensions. Frozen weights are left out for as long as they are frozen.
        per_layer: Whether to write a scalar for each layer and metric, too: `True`, or a selection of those to write.
            `"auto"`: only what the page "Regularization" reads. `False`: no numbers of single layers at all.
        histograms: Whether to write histograms of the weights.
        every_n_epochs: Epochs between two histograms of the weights, >= 1.
        updates: Whether to log how far optimizer steps move the weights: a copy of them, in the steps that are logged.
        layout: Whether to write the charts of TensorBoard's page "Custom Scalars". `False` leaves yours alone;
            `lightning_reg.tensorboard.layout()` returns the charts for merging.
        hparams: Whether the settings of this package's callbacks appear on TensorBoard's page "HPARAMS", beside the
            hyperparameters that your modules save. `False` leaves that page to Lightning.
        html: Whether to save all layers against steps as `reg.html` in the folder of each logger, where its logs or
            checkpoints are: one file for any browser, without TensorBoard. At the end of training, and every ten
            minutes at the end of an epoch; of many steps it holds some, below 1 MB for 200 layers.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, or `html` meets `per_layer=False`; when training starts, if a
            pattern of a selection matches nothing.
        MisconfigurationException: When training starts, if there is no logger, or if the strategy hides the weights.

    Example:
        >>> RegularizationMonitor(select="encoder.*", histograms=True, every_n_epochs=5)
        RegularizationMonitor(metrics=None, select='encoder.*', ..., histograms=True, every_n_epochs=5, ...)

    """

    def __init__(  # noqa: PLR0913  # plain switches, each for itself
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
                "`html` needs the numbers of single layers, and `per_layer` leaves them out, got html=True and"
                " per_layer=False. Leave `per_layer` at 'auto', which writes no scalars for them."
            )
            raise ValueError(msg)

    @override
    def refuse_shared_tags(self, monitors: Sequence[Self]) -> None:
        names = [name for monitor in monitors for name in monitor._metrics]  # noqa: SLF001  # of this class
        for name in names:
            if names.count(name) > 1:
                msg = (
                    f"Two RegularizationMonitors log a metric {name!r} under the same tags. Give one of them other"
                    f" names, as in `metrics={{'head_{name}': ...}}`, or join their selections."
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
        if run is None or run.updates is None or not state.steps_now(trainer):
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
        if run is None or not state.steps_now(trainer):
            return
        first = run.last_step is None
        run.last_step = state.log_step(trainer)
        if not self._looks_now(trainer, run, first_step=first):
            return
        log_for_callbacks(pl_module, run.measure().summary)
        if state.writes_now(trainer) or run.last_step == 0:
            run.write(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:
            return
        if state.ends_training(trainer):
            # In mid-epoch, perhaps; in `on_train_end`, those that average weights may have put in the averages.
            self._run.measure()
        self._run.history.give(trainer, now=False)
        if self.histograms and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._run.write_histograms(trainer, state.log_step(trainer) - 1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run:
            self._run.write(trainer)
            self._run.history.give(trainer, now=True)

    def _looks_now(self, trainer: Trainer, run: Run, *, first_step: bool) -> bool:
        """Tell whether somebody reads what is found in the current step: a logger, or a callback at an epoch's end."""
        if first_step or state.writes_now(trainer) or state.may_end_training(trainer):
            return True
        return state.ends_epoch(trainer) and names_a_value(trainer, run.tags())

    @property
    def _metrics(self) -> Mapping[str, Metric]:
        return _defaults() if self.metrics is None else self.metrics

    def _shown(self, weights: Sequence[Weight]) -> frozenset[str]:
        """Return the layers whose numbers are written one by one."""
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
                f"`metrics` must have names of letters, digits, '_', '.' and '-', but none of {', '.join(tags.TAKEN)},"
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
