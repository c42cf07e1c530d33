"""Norms and products that are rounded upwards, so rounding never makes a bound too small."""

import math

import torch
from torch import Tensor

from lightning_reg.functional.spectral.certificates import certified_norm
from lightning_reg.functional.spectral.matrices import eigenvalue_work
from lightning_reg.functional.spectral.norms import matrix_norm

# A factor above the rounding of float64.
UPWARDS = 1 + 1e-9
# A factor above the rounding of float32.
FAR_UPWARDS = 1 + 1e-5
# The norm of matrices with more entries is computed in float32.
_PRECISE = 1 << 22
# Between these numbers of rows and columns, the norm is not computed: a certified bound replaces it. Above the second,
# the certified bound would take too long.
_LARGE, _LARGEST = 1024, 8192


def norm_upwards(weight: Tensor) -> float:
    """Return the spectral norm of a matrix, rounded up; NaN if an entry is not finite.

    In large matrices the result is at most 0.5 % above the norm.
    """
    return norm_and_gram(weight)[0]


def norm_and_gram(weight: Tensor) -> tuple[float, Tensor | None]:
    """Return the result of `norm_upwards`, and W W^T divided by its square, in float64, if it was computed anyway."""
    if _LARGE < min(weight.shape) <= _LARGEST and not weight.is_complex() and bool(weight.isfinite().all()):
        found = certified_norm(precise(weight))
        if found is not None:
            norm, gram = found
            return norm * UPWARDS, gram / UPWARDS**2 if weight.shape[0] <= weight.shape[1] else None
    return _exact_upwards(weight), None


def norm_work(weight: Tensor) -> float:
    """Return the approximate cost of `norm_upwards`, in operations of the speed of a matrix product."""
    short, long = sorted(weight.shape)
    if _LARGE < short <= _LARGEST and not weight.is_complex():
        return 2.0 * short**2 * (long + short)
    return eigenvalue_work(weight.shape)


def _exact_upwards(weight: Tensor) -> float:
    if weight.numel() <= _PRECISE:
        return float(matrix_norm(precise(weight))) * UPWARDS
    return float(matrix_norm(weight)) * FAR_UPWARDS


def precise(tensor: Tensor) -> Tensor:
    """Return `tensor` in double precision. It moves to the CPU if its device has no double precision."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def times(bound: float, factor: float) -> float:
    """Return the product. 0 times infinity is 0, because a function with slope 0 passes nothing on."""
    if bound == 0 or factor == 0:
        return 0.0 if not (math.isnan(bound) or math.isnan(factor)) else math.nan
    return bound * factor


def smaller(first: float, second: float) -> float:
    """Return the smaller of two bounds; NaN if one is NaN."""
    return math.nan if math.isnan(first) or math.isnan(second) else min(first, second)


def power(base: float, exponent: float) -> float:
    """Return a power, rounded up; infinity if it overflows."""
    try:
        return float(base**exponent) * UPWARDS
    except OverflowError:
        return math.inf
