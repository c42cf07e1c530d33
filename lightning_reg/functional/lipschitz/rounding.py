"""Norms and products rounded upwards, so that rounding puts no bound below the truth."""

import math

import torch
from torch import Tensor

from lightning_reg.functional.spectral.certificates import certified_norm
from lightning_reg.functional.spectral.matrices import eigenvalue_work
from lightning_reg.functional.spectral.norms import matrix_norm

# More than float64 rounds.
UPWARDS = 1 + 1e-9
# More than float32 rounds.
FAR_UPWARDS = 1 + 1e-5
# Larger matrices are measured in float32.
_PRECISE = 1 << 22
# Above the first number of rows and columns, the norm is certified, not computed; above the second, that takes long.
_LARGE, _LARGEST = 1024, 8192


def norm_upwards(weight: Tensor) -> float:
    """Return the spectral norm of a matrix, rounded up, for large ones by at most 0.5 %; NaN if it is not finite."""
    return norm_and_gram(weight)[0]


def norm_and_gram(weight: Tensor) -> tuple[float, Tensor | None]:
    """Return the result of `norm_upwards`, and W W^T over its square in float64 if it was computed."""
    if _LARGE < min(weight.shape) <= _LARGEST and not weight.is_complex() and bool(weight.isfinite().all()):
        found = certified_norm(precise(weight))
        if found is not None:
            norm, gram = found
            return norm * UPWARDS, gram / UPWARDS**2 if weight.shape[0] <= weight.shape[1] else None
    return _exact_upwards(weight), None


def norm_work(weight: Tensor) -> float:
    """Return about how many operations `norm_upwards` takes, at the speed of products."""
    short, long = sorted(weight.shape)
    if _LARGE < short <= _LARGEST and not weight.is_complex():
        return 2.0 * short**2 * (long + short)
    return eigenvalue_work(weight.shape)


def _exact_upwards(weight: Tensor) -> float:
    if weight.numel() <= _PRECISE:
        return float(matrix_norm(precise(weight))) * UPWARDS
    return float(matrix_norm(weight)) * FAR_UPWARDS


def precise(tensor: Tensor) -> Tensor:
    """Return `tensor` in double precision, on the CPU if its device has none."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def times(bound: float, factor: float) -> float:
    """Return the product, with 0 times infinity = 0, because a function with slope 0 passes nothing on."""
    if bound == 0 or factor == 0:
        return 0.0 if not (math.isnan(bound) or math.isnan(factor)) else math.nan
    return bound * factor


def smaller(first: float, second: float) -> float:
    """Return the smaller of two bounds; NaN if one is."""
    return math.nan if math.isnan(first) or math.isnan(second) else min(first, second)


def power(base: float, exponent: float) -> float:
    """Return a power, rounded up; infinity for what is too large for a number."""
    try:
        return float(base**exponent) * UPWARDS
    except OverflowError:
        return math.inf
