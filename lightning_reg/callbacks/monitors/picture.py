"""A picture of all layers, for loggers that accept pictures and for CSV loggers, and an optional HTML page."""

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from lightning_reg.callbacks.trainer.loggers import other_loggers, prefixed, run_folder, save
from lightning_reg.callbacks.trainer.packages import Trainer, is_a
from lightning_reg.tensorboard.heatmap import heatmap
from lightning_reg.tensorboard.picture import picture

_STEPS = 400
_SECONDS = 600.0
_NAME = "reg"


class History:
    """The numbers of all layers at the logged steps. Whenever 400 steps are full, every other step is dropped."""

    def __init__(self, *, has_page: bool) -> None:
        self._has_page = has_page
        self._steps: list[int] = []
        self._reports: list[Mapping[str, Mapping[str, float]]] = []
        self._given = time.monotonic()

    def add(self, step: int, layers: Mapping[str, Mapping[str, float]]) -> None:
        """Record the numbers of a step: metric -> layer -> number."""
        if not any(layers.values()):  # every weight is frozen
            return
        if len(self._steps) == _STEPS:
            self._steps, self._reports = self._steps[::2], self._reports[::2]
        self._steps.append(step)
        self._reports.append(layers)

    def give(self, trainer: Trainer, *, now: bool) -> None:
        """Send the picture to the loggers and save the page, if `now` is set or ten minutes have passed since then."""
        loggers = list(other_loggers(trainer))
        if not (self._steps and (loggers or self._has_page)) or not (now or time.monotonic() - self._given > _SECONDS):
            return
        self._given = time.monotonic()
        metrics, layers = self._numbers()
        if loggers:
            image = picture(metrics, layers, self._steps)
            for logger in loggers:
                _give(logger, image, self._steps[-1])
        if self._has_page:
            page = heatmap(metrics, layers, self._steps)
            for logger in trainer.loggers:
                save(run_folder(trainer, logger), f"{_NAME}.html", page.encode())

    def _numbers(self) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
        """Return the numbers of each metric, shape (layers, steps), and the names of the layers."""
        names = list(dict.fromkeys(name for each in self._reports for layers in each.values() for name in layers))
        metrics = dict.fromkeys(metric for each in self._reports for metric in each)
        values = {
            metric: np.array([[each.get(metric, {}).get(name, np.nan) for each in self._reports] for name in names])
            for metric in metrics
        }
        return values, names


def _give(logger: Any, image: Image, step: int) -> None:
    """Log the picture through the logger's own method, if it has one."""
    if is_a(logger, "CSVLogger") and logger.log_dir is not None:
        save(logger.log_dir, f"{_NAME}.png", _png(image))
    elif is_a(logger, "WandbLogger"):
        logger.log_image(f"{_NAME}/layers", [image], step=step)  # adds the prefix itself
    elif is_a(logger, "MLFlowLogger"):
        logger.experiment.log_image(logger.run_id, image, f"{prefixed(logger, _NAME)}.png")
    elif is_a(logger, "CometLogger"):
        logger.experiment.log_image(image, name=prefixed(logger, f"{_NAME}/layers"), step=step)
    elif is_a(logger, "NeptuneLogger"):
        logger.experiment[prefixed(logger, f"{_NAME}/layers")].upload(image)


def _png(image: Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
