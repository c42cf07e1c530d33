"""Read what Lightning logs: when, at which step, and under which names."""

from collections.abc import Mapping
from typing import Any

from lightning_reg.callbacks.trainer.packages import LightningModule, Logger, Trainer, flatten_dict, sanitize_params
from lightning_reg.callbacks.trainer.progress import ends_epoch


def logged_sums(trainer: Trainer, name: str) -> tuple[float, float] | None:
    """Return the sum and the number of samples so far of a mean that the current loop logs; `None` if unknown."""
    for metric in _logged_as(trainer._results, name):
        if metric.is_tensor and metric.meta.is_mean_reduction and metric.meta.on_epoch:
            return float(metric.value), float(metric.cumulated_batch_size)
    return None


def is_logged(trainer: Trainer, name: str) -> bool:
    """Tell whether the current loop, training or validation, has logged a value of this name."""
    return any(not metric.has_reset for metric in _logged_as(trainer._results, name))


def is_outdated(trainer: Trainer, name: str) -> bool:
    """Tell whether the value of this name in `callback_metrics` is from an earlier epoch."""
    loop = trainer.fit_loop.epoch_loop
    metrics = [*_logged_as(loop._results, name), *_logged_as(loop.val_loop._results, name)]
    return bool(metrics) and all(metric.has_reset for metric in metrics)


def _logged_as(results: Mapping[str, Any] | None, name: str) -> list[Any]:
    """Return the metrics that Lightning shows under a name."""
    found = []
    for metric in (results or {}).values():
        meta = metric.meta
        index = "" if meta.dataloader_idx is None else f"/dataloader_idx_{meta.dataloader_idx}"
        if name in {f"{meta.name}{fork}{suffix}" for fork in ("", "_step", "_epoch") for suffix in ("", index)}:
            found.append(metric)
    return found


def logs_now(trainer: Trainer, *, first_step: bool) -> bool:
    """Tell whether a logger or a callback reads the values logged for the current step.

    Lightning writes to loggers at every `log_every_n_steps`-th step only. But a callback such as
    `ModelCheckpoint(monitor=...)` may read a value at any time. So values exist from the first step on, and are up to
    date at the end of an epoch.
    """
    if trainer.barebones:
        return False
    return writes_now(trainer) or first_step or ends_epoch(trainer)


def writes_now(trainer: Trainer) -> bool:
    """Tell whether Lightning writes the values logged for the current step to the loggers."""
    is_fast: int = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by Lightning's debugging setup
    return trainer._logger_connector.should_update_logs or bool(is_fast)


def log_step(trainer: Trainer) -> int:
    """Return the x-axis position that `self.log` uses for the current step.

    When the step is over, this is the position of the next step. `trainer.global_step` is one larger. With two manual
    optimizers, it counts each batch twice.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_prefix(logger: Logger) -> str:
    """Return the text that a logger puts before every tag; "" if there is none."""
    return getattr(logger, "_prefix", None) or ""


def hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any] | None:
    """Return the hyperparameters that Lightning passes to loggers after `on_fit_start`; `None` if there are none."""
    owners = [pl_module, getattr(trainer, "datamodule", None)]
    logged = [owner.hparams_initial for owner in owners if owner is not None and owner._log_hyperparams]
    if not logged:
        return None
    merged = {key: value for values in logged for key, value in values.items() if key != "_class_path"}
    return sanitize_params(flatten_dict(merged))


def writes_default_metric(logger: Logger) -> bool:
    """Tell whether a TensorBoard logger lists `hp_metric` as the only metric of the run."""
    return getattr(logger, "_default_hp_metric", False)
