"""What TensorBoard is told once, before training: charts, the order of the layers, a run's hyperparameters."""

import inspect
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_reg.callbacks import _trainer
from lightning_reg.callbacks._loggers import prefixed, tensorboard_writers
from lightning_reg.callbacks._run import log_name
from lightning_reg.metrics._reading import layer_names
from lightning_reg.tensorboard import events, layout, tags
from lightning_reg.tensorboard.hparams import hyperparameters, no_experiment

# They change nothing, so their settings are none of the run's.
_MONITORS = ("lightning_reg.callbacks.monitor", "lightning_reg.callbacks.lipschitz")


def write_layout(trainer: Trainer) -> None:
    """Write the charts to every TensorBoard logger."""
    for logger, writer in tensorboard_writers(trainer):
        writer.add_custom_scalars(layout(_trainer.log_prefix(logger)))


def write_network_order(trainer: Trainer, pl_module: LightningModule) -> None:
    """Write the names of all layers, logged or not, in the order of the network, to every TensorBoard logger.

    All of them, so that callbacks which log different layers write the same: a later one replaces an earlier one.
    """
    names = layer_names(pl_module)
    for logger, writer in tensorboard_writers(trainer):
        events.write(writer, events.network_order(prefixed(logger, tags.LAYERS), names), 0)


def write_hyperparameters(trainer: Trainer, pl_module: LightningModule) -> None:
    """Write the settings of this package's callbacks beside the user's hyperparameters, to every TensorBoard logger.

    To be called before Lightning writes the user's, which is right after `on_fit_start`: the first ones count.
    """
    users = _trainer.hyperparameters(trainer, pl_module)
    values = (users or {}) | _settings(_trainer.callbacks_of(trainer, Callback))
    for logger, writer in tensorboard_writers(trainer):
        if users is not None and _trainer.writes_default_metric(logger):
            events.write(writer, no_experiment(), 0)
        events.write(writer, hyperparameters(values), 0)


def _settings(callbacks: Sequence[Callback]) -> dict[str, bool | float | str]:
    """Return every setting of the callbacks that regularize, as `<name of the callback>.<name of the setting>`."""
    ours = [callback for callback in callbacks if _regularizes(callback)]
    settings: dict[str, bool | float | str] = {}
    for callback in ours:
        for name in inspect.signature(type(callback)).parameters:
            value = getattr(callback, name, None)
            if value is not None:
                plain = isinstance(value, (bool, int, float, str))
                settings[f"{log_name(callback, ours)}.{name}"] = value if plain else repr(value)
    return settings


def _regularizes(callback: Callback) -> bool:
    modules = [ancestor.__module__ for ancestor in type(callback).__mro__]
    return any(module.startswith("lightning_reg.") for module in modules) and not any(
        module in _MONITORS for module in modules
    )
