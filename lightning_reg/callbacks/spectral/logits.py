"""Record the logits of a classifier at each call in a training step, and check them against the labels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.penalties.listener import Listener
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException
from lightning_reg.functional.tensors.shards import whole


class Call(NamedTuple):
    """One call of the classifier."""

    inputs: tuple[Any, ...]
    """The positional arguments."""
    outputs: list[Tensor]
    """Copies of all floating tensors that it returned, with their graph."""


class LogitsListener(Listener):
    """A listener that also keeps the arguments of each call.

    Args:
        root: The module that is trained.
        target: The classifier.

    """

    def __init__(self, root: LightningModule | None = None, target: nn.Module | None = None) -> None:
        # Copies, because `training_step` may change the logits in place.
        super().__init__(root, () if target is None else (target,), torch.clone)
        self._calls: list[Call] = []

    @override
    def __reduce__(self) -> tuple[type["LogitsListener"], tuple[()]]:
        return LogitsListener, ()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's has no types
    @override
    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        super().__call__(module, inputs, output)
        outputs = self.take()
        if outputs:
            self._calls.append(Call(inputs, outputs))

    def take_calls(self) -> list[Call]:
        """Return, once, the calls with a gradient since the last time."""
        calls, self._calls = self._calls, []
        return calls

    @override
    def drop(self) -> None:
        super().drop()
        self._calls = []


def labels_of(batch: Any, transform: Callable[[Any], Any] | None) -> Any:
    """Return the classes of the samples of a batch."""
    if transform is not None:
        return transform(batch)
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    msg = (
        f"MarginPenalty expects labels as the second entry of a batch, but the batch is a {type(batch).__name__}. Pass"
        " `label_transform`, a function from the batch to the classes of its samples."
    )
    raise MisconfigurationException(msg)


def checked_logits(outputs: list[Tensor]) -> Tensor:
    """Return the logits. Raise unless they are one tensor of shape (samples, classes)."""
    if len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1:  # noqa: PLR2004  # samples and classes
        return whole(outputs[0])
    shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
    msg = (
        "The `target` of MarginPenalty must return logits, one tensor of shape (samples, classes) with at least two"
        f" classes, got {shapes}. Pass `target=`, the name of the part of the network that returns them."
    )
    raise MisconfigurationException(msg)


def checked_labels(labels: object, logits: Tensor, *, reads_values: bool) -> Tensor:
    """Return the classes of the samples, shape (samples,). Raise if they do not fit the logits.

    Args:
        labels: The result of `labels_of`.
        logits: The logits.
        reads_values: Whether to check the values, which waits for the device.

    """
    count, classes = logits.shape
    is_whole = isinstance(labels, Tensor) and not (
        labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    )
    if not isinstance(labels, Tensor) or not is_whole or labels.shape != (count,):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        msg = (
            f"MarginPenalty needs the class of each of {count} samples, whole numbers of shape ({count},), got {got}."
            " It does not take soft labels or several labels for a sample. Pass `label_transform`, a function from the"
            " batch to the classes of the samples that `target` sees."
        )
        raise MisconfigurationException(msg)
    least, most = torch.stack(labels.aminmax()).tolist() if reads_values and count else (0, 0)
    if least < 0 or most >= classes:
        msg = (
            f"MarginPenalty needs classes from 0 to {classes - 1}, because `target` returns {classes} logits, got"
            f" {least} to {most}. Leave other samples out of the batch."
        )
        raise MisconfigurationException(msg)
    return labels.to(logits.device, torch.long)
