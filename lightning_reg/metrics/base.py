"""The base of weight metrics: a statistic of each layer, combined over layers, updates and ranks."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.shards import whole
from lightning_reg.metrics.reading import as_layers


class LayerMetric(Metric, ABC):
    """A number for each layer, and for all layers together.

    A subclass defines the counts of each layer, and the number computed from them. Counts of several layers add up.
    """

    # `forward` must not merge two states by `dist_reduce_fx`: it merges equal states of ranks, not states of layers.
    full_state_update = True
    is_differentiable = False
    higher_is_better = None

    total: Tensor

    def __init__(self, nothing: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Every rank counts whole weights, sharded or not, so the states of all ranks are equal.
        self.add_state("total", nothing, dist_reduce_fx="max")

    @override
    def extra_repr(self) -> str:
        """Return the settings for `repr`; the `repr` of a callback that holds the metric shows them too."""
        names = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    @abstractmethod
    def statistics(self, layers: Sequence[Layer]) -> Tensor:
        """Return the counts of each layer, shape (layers, counts); a collective call for sharded weights."""

    @abstractmethod
    def value(self, statistics: Tensor) -> Tensor:
        """Return the number computed from counts of shape (..., counts), shape (...)."""

    def combine(self, statistics: Tensor) -> Tensor:
        """Return the counts of all layers together, from shape (layers, counts) to (counts,)."""
        return statistics.sum(0)

    @override
    @torch.no_grad()
    def update(self, weights: Tensor | Iterable[Tensor] | nn.Module) -> None:
        """Add weights; updates accumulate until `reset`.

        Args:
            weights: A tensor or an iterable of tensors, of floating-point or complex numbers; or a module. In a module
                every weight of two or more dimensions counts once, as its forward pass uses it. Tensors must be equal
                on all ranks, or DTensors.

        Raises:
            TypeError: If `weights` is something else.
            ValueError: If the module has no such weight.

        """
        layers = as_layers(weights)
        if layers:
            counts = self.combine(self.statistics(layers)).to(self.total)
            self.total = self.combine(torch.stack([self.total, counts]))

    @override
    def compute(self) -> Tensor:
        """Return the number for all weights together, shape ()."""
        return self.value(self.total)


def measure(metric: Metric, layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Return the value of `metric` for each of `layers`, shape (layers,), and for all together, shape ().

    The state of the metric does not change. A collective call for sharded weights, and for a metric that synchronises
    itself.
    """
    if isinstance(metric, LayerMetric):
        statistics = metric.statistics(layers)
        return metric.value(statistics), metric.value(metric.combine(statistics))
    metric.reset()
    each = torch.stack([metric(whole(layer.tensor)) for layer in layers])
    overall: Tensor = metric.compute()
    metric.reset()
    return each, overall
