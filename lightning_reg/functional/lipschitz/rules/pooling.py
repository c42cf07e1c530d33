"""Rules of pooling, and of linear maps bounded by the row and column sums of their matrix."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.functional.lipschitz.rounding import UPWARDS
from lightning_reg.functional.lipschitz.rules.registry import for_all, for_functions, for_modules
from lightning_reg.functional.lipschitz.value import NoBoundError, Operation, Traced, constant


def positive(op: Operation, input: Any, *rest: Any, **named: Any) -> float:
    """Return the factor of a linear map with entries of one sign: the root of largest row times column sum."""
    constant([rest, named])
    if not isinstance(input, Traced):
        msg = "its rule allows only the first argument to depend on the input"
        raise NoBoundError(msg)
    return _by_sums(lambda ones: op.apply(ones, *rest, **named), input.value)


def _by_sums(apply: Any, like: Tensor) -> float:
    with torch.enable_grad():
        ones = torch.ones_like(like, dtype=torch.float64).requires_grad_()
        rows = apply(ones)
        (columns,) = torch.autograd.grad(rows.sum(), ones)
    return math.sqrt(float(rows.detach().abs().amax()) * float(columns.abs().amax())) * UPWARDS if rows.numel() else 0.0


for_all(
    (
        *(getattr(nn, f"{kind}AvgPool{dims}d") for kind in ("", "Adaptive") for dims in (1, 2, 3)),
        nn.Fold,
    ),
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d fold",
    positive,
)


def _each(value: Any, dims: int) -> Sequence[int]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def _most_windows(windows: Iterable[Iterable[int]], size: int) -> int:
    """Return the largest number of windows that share a pixel."""
    counts = Counter(pixel for pixel in itertools.chain.from_iterable(windows) if 0 <= pixel < size)
    return max(counts.values(), default=0)


def _pooled(op: Operation, input: Traced, dims: int, settings: Sequence[Any]) -> float:
    """Return the factor of pooling by maxima or norms: the root of the largest number of windows that share a pixel."""
    output = op.output[0] if isinstance(op.output, tuple) else op.output
    kernel, stride, padding, dilation = settings
    counts = []
    for k, s, p, d, n, m in zip(
        _each(kernel, dims),
        _each(kernel if stride is None or stride == [] else stride, dims),
        _each(padding, dims),
        _each(dilation, dims),
        input.value.shape[-dims:],
        output.shape[-dims:],
        strict=True,
    ):
        counts.append(_most_windows(([j * s + d * t - p for t in range(k)] for j in range(m)), n))
    return math.sqrt(math.prod(counts))


def _max_pool(dims: int) -> None:
    def function(
        op: Operation,
        input: Traced,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> float:
        return _pooled(op, input, dims, (kernel_size, stride, padding, dilation))

    def adaptive(op: Operation, input: Traced, *_: Any, **__: Any) -> float:
        output = op.output[0] if isinstance(op.output, tuple) else op.output
        counts = [
            _most_windows((range(j * n // m, -(-(j + 1) * n // m)) for j in range(m)), n)
            for n, m in zip(input.value.shape[-dims:], output.shape[-dims:], strict=True)
        ]
        return math.sqrt(math.prod(counts))

    def lp_function(
        op: Operation,
        input: Traced,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
    ) -> float:
        if ceil_mode:  # it enlarges windows that cross the edge
            msg = "its rule does not cover `ceil_mode=True`"
            raise NoBoundError(msg)
        if norm_type < 2 or norm_type % 2:  # noqa: PLR2004  # odd powers keep signs
            msg = f"its rule covers only an even `norm_type` of at least 2, got {norm_type:g}"
            raise NoBoundError(msg)
        return _pooled(op, input, dims, (kernel_size, stride, 0, 1))

    names = f"max_pool{dims}d max_pool{dims}d_with_indices"
    for_functions(names)(function)
    for_modules(getattr(nn, f"MaxPool{dims}d"), settings="kernel_size stride padding dilation")(function)
    names = f"adaptive_max_pool{dims}d adaptive_max_pool{dims}d_with_indices"
    for_all((getattr(nn, f"AdaptiveMaxPool{dims}d"),), names, adaptive)
    for_functions(f"lp_pool{dims}d")(lp_function)
    for_modules(getattr(nn, f"LPPool{dims}d"), settings="norm_type kernel_size stride ceil_mode")(lp_function)


for _dims in (1, 2, 3):
    _max_pool(_dims)
