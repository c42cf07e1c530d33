"""The measurements of the monitor during one `fit`, and how they are logged."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_reg.callbacks.monitors.picture import History
from lightning_reg.callbacks.monitors.updates import Moved, Updates
from lightning_reg.callbacks.trainer.loggers import prefixed, tensorboard_writers, write_layers, write_scalars
from lightning_reg.callbacks.trainer.packages import Trainer
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.shards import whole
from lightning_reg.metrics.base import measure
from lightning_reg.metrics.reading import layer_name, read_layers
from lightning_reg.selection.weights import Weight
from lightning_reg.tensorboard import events, tags


@dataclass(frozen=True)
class Report:
    """The numbers of one step."""

    summary: dict[str, float] = field(default_factory=dict)
    """Tag -> number, of all layers together and over the layers."""
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric -> layer -> number."""
    spreads: dict[str, Tensor] = field(default_factory=dict)
    """Tag of a histogram -> the numbers of all layers, shape (layers,)."""


@dataclass
class Run:
    """State of the monitor between the start and the end of `fit`. A resumed run does not need it."""

    weights: Sequence[Weight]
    metrics: Mapping[str, Metric]
    updates: Updates | None
    """Measures how far optimizer steps move the layers, if `updates` is set."""
    shown: frozenset[str]
    """The layers whose numbers are written as scalars."""
    has_layers: bool
    """Whether the numbers of all layers are written, as one tensor for each metric."""
    history: History
    """The data of the picture and the page, for use without TensorBoard."""
    last_step: int | None = None
    """The latest training step of this run."""
    reported_step: int | None = None
    written_step: int | None = None
    spread_tags: set[str] = field(default_factory=set)
    """The tags of the histograms over the layers. A tag joins at the first value that is not zero."""
    report: Report = field(default_factory=Report)

    def tags(self) -> list[str]:
        """Return the prefixes of all tags in the summary."""
        return [*map(tags.overall, self.metrics), *([tags.overall(tags.UPDATE_RATIO)] if self.updates else [])]

    @torch.no_grad()
    def measure(self) -> Report:
        """Measure all layers after the last step. This synchronizes once. Sharded weights make it a collective call."""
        if self.reported_step != self.last_step:
            self.report, self.reported_step = self._measure(), self.last_step
        return self.report

    def _measure(self) -> Report:
        report, layers = Report(), self._layers()
        if not layers:
            return report
        self._add_updates(report)
        measured = [measure(metric, layers) for metric in self.metrics.values()]
        numbers = torch.cat([part for each, overall in measured for part in (each, overall.reshape(1))]).cpu()
        for name, row in zip(self.metrics, torch.split(numbers, len(layers) + 1), strict=True):
            *values, overall = row.tolist()
            report.summary[tags.overall(name)] = overall
            for statistic, value in _over_layers(values).items():
                report.summary[tags.over_layers(name, statistic)] = value
            report.spreads[tags.spread(name)] = row[:-1]
            report.layers[name] = {layer.name: value for layer, value in zip(layers, values, strict=True)}
        return report

    def _add_updates(self, report: Report) -> None:
        moved = self.updates.end() if self.updates is not None else Moved({}, {})
        layer_of = {weight.name: layer_name(weight) for weight in self.weights}
        for metric, found in ((tags.UPDATE_RATIO, moved.update), (tags.DECAY_RATIO, moved.decay)):
            if not found:
                continue
            values = dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))
            for statistic, over_all in _over_layers(list(values.values())).items():
                report.summary[tags.over_layers(metric, statistic)] = over_all
            report.layers[metric] = {layer_of[name]: value for name, value in values.items()}

    def write(self, trainer: Trainer) -> None:
        """Write the report on the last step to the loggers, once."""
        report, step = self.measure(), self.last_step
        if step is None or step == self.written_step:
            return
        write_scalars(trainer, report.summary | self._scalars_of_layers(report), step)
        for metric, layers in report.layers.items():
            if self.has_layers:
                write_layers(trainer, metric, layers, step)
        if self.has_layers and trainer.is_global_zero:
            self.history.add(step, report.layers)
        # Without this, the page "Distributions" would start with the zeros of a network without sparsity.
        self.spread_tags.update(tag for tag, values in report.spreads.items() if values.any())
        for logger, writer in tensorboard_writers(trainer):
            for tag in self.spread_tags & report.spreads.keys():
                values = report.spreads[tag]
                events.write(writer, events.histogram(prefixed(logger, tag), values), step)
        self.written_step = step

    def _scalars_of_layers(self, report: Report) -> dict[str, float]:
        return {
            tags.per_layer(metric, layer): value
            for metric, layers in report.layers.items()
            for layer, value in layers.items()
            if layer in self.shown
        }

    def write_histograms(self, trainer: Trainer, step: int) -> None:
        """Write a histogram of every layer's weights. Sharded weights make this a collective call."""
        for layer in self._layers():
            values = whole(layer.tensor)
            for logger, writer in tensorboard_writers(trainer):
                events.write(writer, events.histogram(prefixed(logger, tags.weights(layer.name)), values), step)

    def _layers(self) -> list[Layer]:
        trained = (weight for weight in self.weights if weight.parameter.requires_grad)
        # A weight without entries has no sparsity, so it would distort the statistics over layers.
        return [layer for layer in read_layers(trained) if layer.tensor.numel()]


def _over_layers(values: Sequence[float]) -> dict[str, float]:
    """Return the minimum, the median and the maximum; NaN if one value is NaN."""
    if any(map(math.isnan, values)):
        return dict.fromkeys(("min", "median", "max"), math.nan)
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
