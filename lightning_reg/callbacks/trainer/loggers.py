"""Writing to the trainer's loggers what does not go through `self.log`."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.packages import LightningModule, Logger, Trainer, is_a
from lightning_reg.tensorboard import events


def tensorboard_writers(trainer: Trainer) -> Iterator[tuple[Logger, SummaryWriter]]:
    """Yield the TensorBoard loggers with what they write through; none but on rank 0."""
    for logger in trainer.loggers:
        if trainer.is_global_zero and is_a(logger, "TensorBoardLogger"):
            writer: SummaryWriter = logger.experiment  # type: ignore[attr-defined]
            yield logger, writer


def prefixed(logger: Logger, tag: str) -> str:
    """Return `tag` as a TensorBoard logger writes it."""
    prefix = state.log_prefix(logger)
    return f"{prefix}-{tag}" if prefix else tag


def write_scalars(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    """Write many numbers at `step` to every logger, to TensorBoard as one event; on rank 0."""
    if not (trainer.is_global_zero and values):
        return
    for logger, writer in tensorboard_writers(trainer):
        tagged = {prefixed(logger, tag): value for tag, value in values.items()}
        events.write(writer, events.scalars(tagged), step)
    for logger in trainer.loggers:
        if not is_a(logger, "TensorBoardLogger"):
            logger.log_metrics(dict(values), step=step)


def log_for_callbacks(
    pl_module: LightningModule, values: Mapping[str, Tensor | float], *, prog_bar: bool = False
) -> None:
    """Log a few numbers for other callbacks, as `trainer.callback_metrics`, and for the progress bar if asked for.

    Not for the loggers: Lightning would write old values as those of the last step if a later hook stops training.
    """
    # A batch size of 1 keeps Lightning from searching the batch for one; it matters only for means over an epoch.
    pl_module.log_dict(dict(values), prog_bar=prog_bar, on_step=True, on_epoch=False, logger=False, batch_size=1)


def names_a_value(trainer: Trainer, tags: Iterable[str]) -> bool:
    """Tell whether a callback or a scheduler names one of `tags`, as `monitor` or in the name of a file."""
    settings = [value for callback in state.callbacks_of(trainer, object) for value in vars(callback).values()]
    names = [value for value in settings if isinstance(value, str)]
    names += [str(config.monitor) for config in trainer.lr_scheduler_configs]
    return any(tag in name for tag in tags for name in names)


def log(
    trainer: Trainer,
    pl_module: LightningModule,
    values: Mapping[str, Tensor | float],
    per_layer: Mapping[str, float] | None = None,
) -> None:
    """Log numbers for the current step: `values` for other callbacks, all for the loggers if this is a logging step."""
    log_for_callbacks(pl_module, values)
    if state.writes_now(trainer):
        numbers = {tag: float(value) for tag, value in values.items()}
        write_scalars(trainer, numbers | dict(per_layer or {}), state.log_step(trainer))
