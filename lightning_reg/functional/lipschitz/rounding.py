"""Norms and products rounded upwards, so that rounding puts no bound below the truth."""

import math

import torch
from torch import Tensor

from lightning_reg.functional.spectral.norms import matrix_norm

# More than float64 rounds.
UPWARDS = 1 + 1e-9
# More than float32 rounds.
FAR_UPWARDS = 1 + 1e-5
# Larger matrices are measured in float32.
_PRECISE = 1 << 22


def norm_upwards(weight: Tensor) -> float:
    """Return the spectral norm of a matrix, rounded up; NaN if it is not finite."""
    if weight.numel() <= _PRECISE:
        return float(matrix_norm(precise(weight))) * UPWARDS
    return float(matrix_norm(weight)) * FAR_UPWARDS


def precise(tensor: Tensor) -> Tensor:
    """Return `tensor` in double precision, on the CPU if its device has none."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def times(bound: float, factor: float) -> float:
    """Return the product, in which 0 makes even infinity 0: what has no slope does not pass anything on."""
    if bound == 0 or factor == 0:
        return 0.0 if not (math.isnan(bound) or math.isnan(factor)) else math.nan
    return bound * factor
