"""The classes of the samples of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_reg.callbacks.trainer.packages import MisconfigurationException


def labels_of(batch: Any, transform: Callable[[Any], Any] | None, owner: str) -> Any:
    """Return the classes of the samples of a batch. An error names the callback `owner`."""
    if transform is not None:
        return transform(batch)
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    msg = (
        f"{owner} expects labels as the second entry of a batch, but the batch is a {type(batch).__name__}. Pass"
        " `label_transform`, a function from the batch to the classes of its samples."
    )
    raise MisconfigurationException(msg)


def checked_labels(labels: object, logits: Tensor, owner: str, *, reads_values: bool = True) -> Tensor:
    """Return the classes of the samples, shape (samples,). Raise if they do not fit the logits.

    Args:
        labels: The result of `labels_of`.
        logits: The logits, shape (samples, classes).
        owner: The name of the callback.
        reads_values: Whether to check the values, which waits for the device.

    """
    count, classes = len(logits), logits.shape[-1]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() or labels.shape != (count,):
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        msg = (
            f"{owner} needs the class of each of {count} samples, whole numbers of shape ({count},), got {got}."
            " It does not take soft labels or several labels for a sample. Pass `label_transform`, a function from the"
            " batch to the classes of the samples that `target` sees."
        )
        raise MisconfigurationException(msg)
    labels = labels.to(logits.device, torch.long)
    least, most = torch.stack(labels.aminmax()).tolist() if reads_values and count else (0, 0)
    if least < 0 or most >= classes:
        msg = (
            f"{owner} needs classes from 0 to {classes - 1}, because `target` returns {classes} logits, got"
            f" {least} to {most}. Leave other samples out of the batch."
        )
        raise MisconfigurationException(msg)
    return labels
