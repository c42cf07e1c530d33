"""Entries that are written once, before training: charts, the order of the layers, and hyperparameters."""

from lightning_reg.callbacks.trainer import logged, state
from lightning_reg.callbacks.trainer.loggers import other_loggers, prefixed, tensorboard_writers
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.settings import regularization_settings
from lightning_reg.metrics.reading import layer_names
from lightning_reg.tensorboard import events, layout, tags
from lightning_reg.tensorboard.hparams import hyperparameters, no_experiment


def write_layout(trainer: Trainer) -> None:
    """Write the charts to every TensorBoard logger."""
    for logger, writer in tensorboard_writers(trainer):
        writer.add_custom_scalars(layout(logged.log_prefix(logger)))


def write_network_order(trainer: Trainer, pl_module: LightningModule) -> None:
    """Write the names of all layers, logged or not, in the order of the network, to every TensorBoard logger.

    Every monitor writes all names, because a later entry replaces an earlier one.
    """
    names = layer_names(pl_module)
    for logger, writer in tensorboard_writers(trainer):
        events.write(writer, events.network_order(prefixed(logger, tags.LAYERS), names), 0)


def write_hyperparameters(trainer: Trainer, pl_module: LightningModule) -> None:
    """Write the settings of this package's callbacks, together with the user's hyperparameters, to every logger.

    Call this before Lightning writes the user's hyperparameters, which happens right after `on_fit_start`. TensorBoard
    keeps the first entries. The other loggers add the user's hyperparameters to these.
    """
    users = logged.hyperparameters(trainer, pl_module)
    ours = regularization_settings(state.callbacks_of(trainer, object))
    if ours:
        for logger in other_loggers(trainer):
            logger.log_hyperparams(ours)
    values = (users or {}) | ours
    for logger, writer in tensorboard_writers(trainer):
        if users is not None and logged.writes_default_metric(logger):
            events.write(writer, no_experiment(), 0)
        events.write(writer, hyperparameters(values), 0)
