r"""Rules of Fourier transforms, differences, cumulative and trapezoidal sums, whose norms have closed forms."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_reg.functional.lipschitz.rounding import UPWARDS, times
from lightning_reg.functional.lipschitz.rules.registry import for_function, for_functions
from lightning_reg.functional.lipschitz.value import Bound, Operation, Traced, constant, together, traced_in

_INVERSE = {"ifft", "irfft", "ihfft"}
# These take numbers x_0, ..., x_m. Each stands for a conjugate pair, except the first and possibly the last.
_FROM_HALVES = {"irfft", "hfft"}


def _fourier(kind: str, dims: int | None) -> Any:
    """Return the rule of a transform over one, two, or any number of dimensions.

    The matrix F of N points has F^H F = N, so its norm is sqrt(N). The constant vector attains it, so real arguments
    have the same norm. If a number stands for itself and its conjugate, it counts for both: sqrt(2 N).
    """

    def rule(op: Operation, input: Any, s: Any = None, dim: Any = None, norm: str | None = None, **named: Any) -> float:
        places = _places(input.value.ndim, named.get("n", s), dim, dims)
        counts = [op.output.shape[place] for place in places]
        if kind in {"rfft", "ihfft"}:
            asked = named.get("n", s)
            last = asked[-1] if isinstance(asked, Sequence) else asked
            counts[-1] = input.value.shape[places[-1]] if last in {None, -1} else last
        points = math.prod(counts)
        inverse = "forward" if kind in _INVERSE else "backward"
        # `norm` decides which direction is divided by N, or whether both are divided by the root of N.
        scale = 1 / math.sqrt(points) if norm == "ortho" else 1.0 if (norm or "backward") == inverse else 1 / points
        pairs = math.sqrt(2) if kind in _FROM_HALVES and counts[-1] > 2 else 1.0  # noqa: PLR2004  # more than the ends
        return math.sqrt(points) * scale * pairs * UPWARDS

    return rule


def _places(rank: int, sizes: Any, dim: Any, dims: int | None) -> Sequence[int]:
    if dim is not None:
        return (dim,) if isinstance(dim, int) else tuple(dim)
    if dims is not None:
        return range(-dims, 0)
    return range(-(rank if sizes is None else len(sizes)), 0)


for _kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    for _suffix, _dims in (("", 1), ("2", 2), ("n", None)):
        for_function(getattr(torch.fft, _kind + _suffix), _fourier(_kind, _dims))
for _function in (torch.fft.fftshift, torch.fft.ifftshift):
    for_function(_function, lambda op, input, dim=None: 1.0)


@for_functions("diff")
def _diff(op: Operation, input: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Bound:
    r"""Return the bound. For m entries the norm is :math:`2 \cos(\pi / 2 m)`, because :math:`D D^T` is tridiagonal."""
    count = sum(
        (each.value if isinstance(each, Traced) else each).shape[dim]
        for each in (prepend, input, append)
        if each is not None
    )
    factor = math.prod(2 * math.cos(math.pi / (2 * (count - order))) for order in range(min(n, count)))
    bounds = together(each.bound.value for each in traced_in([prepend, input, append]))
    return Bound(times(bounds, factor * UPWARDS))


@for_functions("cumsum")
def _cumsum(op: Operation, input: Any, dim: Any, *_: Any, **__: Any) -> float:
    """Return the norm of the triangle of ones, whose inverse is bidiagonal."""
    constant(dim)
    count = input.value.shape[dim] if input.value.ndim else 1
    return UPWARDS / (2 * math.sin(math.pi / (4 * count + 2))) if count else 0.0


@for_functions("logcumsumexp cummax cummin")
def _cumulative(op: Operation, input: Any, dim: Any, *_: Any, **__: Any) -> float:
    """Return the root of the count. Each result changes by a weighted mean of changes, at worst of the same entry."""
    constant(dim)
    return math.sqrt(input.value.shape[dim]) if input.value.ndim else 1.0


@for_functions("trapz trapezoid")
def _trapezoid(op: Operation, y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> float:
    r"""Return the largest norm of the weights :math:`(d_{i-1} + d_i) / 2`, where d are the distances of positions."""
    count = y.value.shape[dim]
    if x is None:
        return abs(dx) * math.sqrt(max(count - 1.5, 0.0)) * UPWARDS
    steps = constant(x).double().diff(dim=dim if x.ndim > 1 else -1).movedim(dim if x.ndim > 1 else -1, -1) / 2
    weights = torch.nn.functional.pad(steps, (0, 1)) + torch.nn.functional.pad(steps, (1, 0))
    return float(weights.norm(dim=-1).amax()) * UPWARDS
