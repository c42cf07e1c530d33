"""Choose the precision for computing and returning norms."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def wide(weight: Tensor) -> Tensor:
    """Return `weight` in float32 or float64, precise enough for norms exact to 1e-6.

    float64 weights stay float64. The result is also float64 if the user lets float32 products run in TF32 or bfloat16
    (`torch.set_float32_matmul_precision`, or `torch.backends`), because these have an error of 1e-3.
    """
    double = reported(weight) == torch.float64 or _has_inexact_products()
    real = torch.float64 if double else torch.float32
    return weight.to(real.to_complex() if weight.is_complex() else real)


def _has_inexact_products() -> bool:
    """Tell whether products of float32 tensors run in a lower precision on some device."""
    if torch.compiler.is_compiling():  # The compiler cannot trace these settings.
        return bool(torch.compiler.disable(_has_inexact_products)())  # type: ignore[no-untyped-call]  # torch's
    # Avoid `torch.get_float32_matmul_precision`: it warns in torch 2.9, and raises if the user has set one of these.
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # made at import
    return any(backend.fp32_precision not in {"none", "ieee"} for backend in backends)


def reported(weight: Tensor) -> torch.dtype:
    """Return the dtype in which to report the norm of `weight`: float64 for float64 weights, else float32."""
    return torch.float64 if weight.dtype in {torch.float64, torch.complex128} else torch.float32


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Disable autocast, which would compute products in half precision."""
    with torch.autocast(device.type, enabled=False):
        yield
