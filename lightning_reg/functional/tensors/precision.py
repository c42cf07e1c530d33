"""The precision in which norms are computed and returned."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def wide(weight: Tensor) -> Tensor:
    """Return `weight` in a precision with norms exact to 1e-6: float32 at least.

    float64 if the user lets float32 products run in TF32 or bfloat16 (`torch.set_float32_matmul_precision`), which have
    an error of 1e-3.
    """
    double = reported(weight) == torch.float64 or torch.get_float32_matmul_precision() != "highest"
    real = torch.float64 if double else torch.float32
    return weight.to(real.to_complex() if weight.is_complex() else real)


def reported(weight: Tensor) -> torch.dtype:
    """Return the dtype of the returned norm of `weight`: float64 for float64, else float32."""
    return torch.float64 if weight.dtype in {torch.float64, torch.complex128} else torch.float32


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Keep autocast from computing products in half precision."""
    with torch.autocast(device.type, enabled=False):
        yield
