"""Write to the trainer's loggers without `self.log`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_reg.callbacks.trainer import logged, state
from lightning_reg.callbacks.trainer.packages import LightningModule, Logger, Trainer, get_filesystem, is_a
from lightning_reg.tensorboard import events, tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW_LAYERS = 16
"""Up to this number of layers, values per layer also become scalars, even if no argument asks for them."""


@dataclass
class _Pending:
    """Values of a step that callbacks have written and loggers have not received yet."""

    step: int = -1
    values: dict[str, float] = field(default_factory=dict)


_pending: WeakKeyDictionary[Trainer, _Pending] = WeakKeyDictionary()
_named: WeakKeyDictionary[SummaryWriter, set[str]] = WeakKeyDictionary()
"""The tensor tags for which a writer has already written the layer names."""


def tensorboard_writers(trainer: Trainer) -> Iterator[tuple[Logger, SummaryWriter]]:
    """Yield each TensorBoard logger with its writer, on rank 0 only."""
    for logger in trainer.loggers:
        if trainer.is_global_zero and is_a(logger, "TensorBoardLogger"):
            writer: SummaryWriter = logger.experiment  # type: ignore[attr-defined]
            yield logger, writer


def other_loggers(trainer: Trainer) -> Iterator[Logger]:
    """Yield the loggers other than TensorBoard, on rank 0 only."""
    for logger in trainer.loggers:
        if trainer.is_global_zero and not is_a(logger, "TensorBoardLogger"):
            yield logger


def run_folder(trainer: Trainer, logger: Logger) -> str:
    """Return the folder or URL of a logger's run: its log folder, or else its checkpoint folder."""
    if logger.log_dir is not None:
        return logger.log_dir
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return "/".join((str(logger.save_dir or trainer.default_root_dir).rstrip("/"), str(logger.name), version))


def save(folder: str, name: str, content: bytes) -> None:
    """Write a file to a local folder, or to a remote one that Lightning supports (`s3://`, `gs://`, ...)."""
    files = get_filesystem(folder)
    files.makedirs(folder, exist_ok=True)
    with files.open(f"{folder}/{name}", "wb") as file:
        file.write(content)


def prefixed(logger: Logger, tag: str) -> str:
    """Return `tag` with the logger's prefix in front, as the logger writes it."""
    prefix = logged.log_prefix(logger)
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '_')}{tag}" if prefix else tag


def write_scalars(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    """Write many numbers at `step` to every logger; on rank 0.

    TensorBoard gets them as one event. The other loggers get the numbers of all callbacks in one call, after the step:
    see `flush`.
    """
    if not (trainer.is_global_zero and values):
        return
    for logger, writer in tensorboard_writers(trainer):
        tagged = {prefixed(logger, tag): value for tag, value in values.items()}
        events.write(writer, events.scalars(tagged), step)
    pending = _pending.setdefault(trainer, _Pending())
    if pending.step != step:
        flush(trainer)
        pending.step = step
    pending.values.update(values)


def flush(trainer: Trainer) -> None:
    """Pass the pending values of callbacks to the loggers other than TensorBoard."""
    pending = _pending.get(trainer)
    if pending is None or not pending.values:
        return
    values, pending.values = pending.values, {}
    for logger in other_loggers(trainer):
        logger.log_metrics(dict(values), step=pending.step)


def write_figure(trainer: Trainer, tag: str, draw: Callable[[], "Figure"], step: int) -> None:
    """Give TensorBoard the figure that `draw` returns, if matplotlib is installed; on rank 0."""
    writers = list(tensorboard_writers(trainer))
    if not writers:
        return
    try:
        figure = draw()
    except ImportError:
        return
    for logger, writer in writers:
        writer.add_figure(prefixed(logger, tag), figure, step, close=False)


def write_layers(trainer: Trainer, metric: str, values: Mapping[str, float], step: int) -> None:
    """Write one number per layer to TensorBoard, as a tensor for the page "Regularization"; on rank 0."""
    if not values:
        return
    names = list(values)
    tag = tags.values_of(metric, names)
    for logger, writer in tensorboard_writers(trainer):
        known = _named.setdefault(writer, set())
        summary = events.layer_values(prefixed(logger, tag), list(values.values()), None if tag in known else names)
        known.add(tag)
        events.write(writer, summary, step)


def write_layers_and_few_scalars(trainer: Trainer, metric: str, values: Mapping[str, float], step: int) -> None:
    """Write one number per layer as `write_layers` does, and also as scalars if there are few layers."""
    write_layers(trainer, metric, values, step)
    if len(values) <= _FEW_LAYERS:
        write_scalars(trainer, {tags.per_layer(metric, layer): value for layer, value in values.items()}, step)


def log_for_callbacks(
    pl_module: LightningModule, values: Mapping[str, Tensor | float], *, prog_bar: bool = False
) -> None:
    """Log a few numbers for other callbacks, in `trainer.callback_metrics`, and on request for the progress bar.

    Loggers do not get these numbers. If a later hook stopped training, Lightning would write old values for the last
    step.
    """
    if prog_bar:
        # Pass a batch size, or Lightning searches the batch for it. Only epoch means would use it.
        pl_module.log_dict(dict(values), prog_bar=True, on_step=True, on_epoch=False, logger=False, batch_size=1)
        return
    # Avoid `self.log`: it takes 0.2 ms per number, and slows down every later step of the epoch.
    kept = pl_module.trainer.callback_metrics
    kept.update((tag, value.detach().clone()) for tag, value in values.items() if isinstance(value, Tensor))
    numbers = {tag: value for tag, value in values.items() if not isinstance(value, Tensor)}
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    kept.update(zip(numbers, torch.tensor([*numbers.values()], dtype=dtype, device=pl_module.device), strict=True))


def names_a_value(trainer: Trainer, prefixes: Iterable[str]) -> bool:
    """Tell whether a callback or scheduler uses a tag with one of `prefixes`, as `monitor` or in a file name."""
    settings = [value for callback in state.callbacks_of(trainer, object) for value in vars(callback).values()]
    names = [value for value in settings if isinstance(value, str)]
    names += [str(config.monitor) for config in trainer.lr_scheduler_configs]
    return any(prefix in name for prefix in prefixes for name in names)


def log(
    trainer: Trainer,
    pl_module: LightningModule,
    values: Mapping[str, Tensor | float],
    per_layer: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Log numbers for the current step.

    Other callbacks get `values`. Loggers get `values` and `per_layer`, if this is a logging step. `per_layer` maps each
    metric to one number per layer.
    """
    log_for_callbacks(pl_module, values)
    if logged.writes_now(trainer):
        numbers = {tag: float(value) for tag, value in values.items()}
        write_scalars(trainer, numbers, logged.log_step(trainer))
        for metric, layers in (per_layer or {}).items():
            write_layers_and_few_scalars(trainer, metric, layers, logged.log_step(trainer))
