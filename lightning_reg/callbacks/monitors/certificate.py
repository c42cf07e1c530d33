"""Certified accuracy: the share of the validation set that stays correctly classified within a radius."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_reg.callbacks.monitors.lipschitz_target import InputTransform, Target
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.labels import checked_labels, labels_of
from lightning_reg.callbacks.trainer.packages import Trainer
from lightning_reg.functional.lipschitz.certificates import margin_bounds
from lightning_reg.functional.lipschitz.nested import found, kind_of
from lightning_reg.functional.lipschitz.stand_in import stand_in, widened
from lightning_reg.functional.tensors.precision import without_autocast
from lightning_reg.functional.tensors.random import unchanged_generators
from lightning_reg.metrics.certified_accuracy import CertifiedAccuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The number of radii of the curve.
_STEPS = 100
_OWNER = "LipschitzMonitor(certify=...)"


class Certificate:
    """The certified accuracy over one pass through the validation set. It does not affect training.

    Args:
        target: The classifier.
        radii: Radii in the unit of the classifier's input.

    """

    def __init__(self, target: Target, radii: Sequence[float]) -> None:
        self._target = target
        curve = (max(radii) * step / _STEPS for step in range(_STEPS))
        self._metric = CertifiedAccuracy(sorted({*radii, *curve}))
        self._network: nn.Module | None = None
        self._bounds: dict[tuple[Any, ...], Tensor] = {}
        """The bounds of margins, by the sizes of the inputs: pooling and attention depend on them."""

    def add(
        self,
        batch: Any,
        inputs: InputTransform | None,
        labels: InputTransform | None,
        count: Callable[[int], int],
    ) -> None:
        """Add the samples of a batch. Of its n rows, the first `count(n)` are added."""
        if self._network is None:
            # Copy the network only now: at the start of validation, callbacks may first swap in averaged weights.
            self._network = stand_in(self._target.module)
        samples = widened(self._target.samples(batch, None, inputs))
        arguments = samples if isinstance(samples, tuple) else (samples,)
        tensors = list(found(arguments, Tensor))
        kind = kind_of(arguments)
        if kind not in self._bounds or not all(tensor.is_floating_point() for tensor in tensors):
            # The bounds hold for the whole numbers in this batch only.
            self._bounds[kind] = margin_bounds(self._network, arguments)
        device = tensors[0].device
        with (
            torch.no_grad(),
            without_autocast(device),
            unchanged_generators({device}),
            torch.compiler.set_stance("force_eager"),
        ):
            logits = self._network(*arguments)
            classes = checked_labels(labels_of(batch, labels, _OWNER), logits, _OWNER)
            rows = count(len(logits))
            self._metric.to(device).update(logits[:rows], classes[:rows], self._bounds[kind])

    def shares(self, trainer: Trainer) -> dict[float, float]:
        """Return the certified accuracy at `radii` and along a curve up to the largest radius; a collective call."""
        # `compute` would warn on ranks that have no batch.
        sums = torch.cat([self._metric.certified, self._metric.count[None]]).to(trainer.strategy.root_device)
        *certified, count = state.sums_over_ranks(trainer, sums).tolist()
        return {radius: number / count for radius, number in zip(self._metric.radii, certified, strict=True) if count}

    def plot(self, shares: Mapping[float, float]) -> "Figure":
        """Return a figure of certified accuracy against the radius."""
        figure, _ = self._metric.plot(torch.tensor(list(shares.values())))
        return figure
