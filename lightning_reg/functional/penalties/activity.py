"""The size of module outputs: a sum over units, and a mean over samples."""

from typing import Literal

import torch
from torch import Tensor

from lightning_reg.functional.tensors.shards import whole

Norm = Literal["l1", "l2"]


def mean_activity(outputs: Tensor, norm: Norm) -> Tensor:
    r"""Return :math:`\frac{1}{N} \sum |a|`, or :math:`\frac{1}{N} \sum a^2`, with N the size of the first dimension.

    Shape (), differentiable; in float32 at least. Later changes of `outputs` in place do not affect it.
    """
    # A copy, because the next layer may work in place, as `nn.ReLU(inplace=True)` does, and backward needs the values.
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32), copy=True)
    entries = wide.abs() if norm == "l1" else wide.square()
    samples = max(outputs.shape[0], 1) if outputs.ndim else 1
    return whole(entries.sum() / samples)
