"""Arguments of torch's kernels for lists of tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Scalar = float | Tensor


def alike(values: Sequence[Scalar]) -> Any:
    """Return numbers as they are, or tensors if one is a tensor: these kernels take no mixture.

    Untyped, for torch declares lists of numbers only.
    """
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    return list(values) if device is None else [torch.as_tensor(value, device=device) for value in values]
