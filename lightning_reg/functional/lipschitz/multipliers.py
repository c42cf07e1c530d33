r"""LipSDP: the bound of a chain of matrices and activations from the best multipliers of its units.

A unit with slopes from a to b maps a difference s of its input to :math:`m s + r w`, with :math:`m = (a + b) / 2`,
:math:`r = (b - a) / 2` and :math:`|w| \le |s|`. All differences are linear in :math:`x = (\delta_0, w)`: the inputs of
the units differ by :math:`s = A x`, and the outputs of the chain by :math:`C x`. For any multipliers
:math:`\lambda \ge 0`,

.. math:: K = \mathrm{diag}(\rho, \lambda) - A^T \mathrm{diag}(\lambda) A \succ 0
          \quad\Rightarrow\quad \|C x\|^2 \le \|C K^{-1} C^T\| \, x^T K x \le \|C K^{-1} C^T\| \, \rho \|\delta_0\|^2.

The smallest of these bounds is the solution of a semidefinite program. Newton's method with a logarithmic barrier
solves it, because the derivatives are products of small matrices. The bound holds for any multipliers, so it also holds
if the method stops early.

Reference: Fazlyab et al., Efficient and Accurate Estimation of Lipschitz Constants for Deep Neural Networks, 2019,
arXiv:1906.04893.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.rounding import precise, times
from lightning_reg.functional.spectral.norms import matrix_norm

# The largest number of units. The cost grows with its third power.
_LARGEST = 128
# If classes squared times units cubed is at most this, each pair of classes has its own multipliers.
_EFFORT = 4_000_000
# The square of the bound is relatively at most this much above the optimum.
_CLOSE = 1e-3
# Newton's method: the largest number of steps, the shortest step, the expected decrease at which the barrier becomes
# sharper, and the factor by which it does.
_STEPS, _SHORTEST, _NEAR, _SHARPER = 200, 1e-6, 0.5, 10.0
# If rounding could add more than this to the bound, the bound is not used.
_ROUNDING = 1e-6
# An upper limit of float64's rounding of entries below 1.
_SQUARES = 1e-14


class Layer(NamedTuple):
    """A matrix and the activation after it."""

    weight: Tensor
    """Shape (out, in), float64."""
    low: Tensor
    """The least slope of each unit, shape (out,)."""
    high: Tensor
    """The largest slope of each unit."""


@dataclass(frozen=True)
class History:
    """The layers of a chain of few units, on the CPU in float64."""

    start: float
    """The bound before the chain."""
    layers: tuple[Layer, ...] = ()
    last: Tensor | None = None
    """The product of the matrices after the last activation."""

    def linear(self, weight: Tensor) -> "History | None":
        """Return the history with one more matrix, shape (out, in); None if the matrix is too large."""
        if self.last is None and not self.layers:
            return replace(self, last=narrowed(_plain(weight))) if len(weight) <= _LARGEST else None
        return replace(self, last=_plain(weight) if self.last is None else _plain(weight) @ self.last)

    def activated(self, low: float | Tensor, high: float | Tensor) -> "History | None":
        """Return the history with an activation of these slopes, shape (units,); None if the units are too many."""
        if self.last is None or sum(len(each.weight) for each in self.layers) + len(self.last) > _LARGEST:
            return None
        slopes = (torch.as_tensor(each, dtype=torch.float64).cpu().expand(len(self.last)) for each in (low, high))
        return History(self.start, (*self.layers, Layer(self.last, *slopes)))

    def scaled(self, factor: float) -> "History":
        """Return the history after a product with a number."""
        if self.last is not None:
            return replace(self, last=self.last * factor)
        if not self.layers:
            return replace(self, start=times(self.start, factor))
        weight, low, high = self.layers[-1]
        return replace(self, layers=(*self.layers[:-1], Layer(weight, low * factor, high * factor)))

    def bound(self) -> tuple[float, Tensor] | None:
        """Return the bound and R after the last matrix, as in `best_bound`; None if there is no activation yet."""
        found = best_bound(self.layers, self.last) if self.layers and self.last is not None else None
        return None if found is None else (times(self.start, found[0]), found[1])

    def of_differences(self, rows: Tensor) -> Tensor | None:
        """Return the bounds for the difference of each pair of outputs of `rows`, shape (rows, rows).

        The matrix `rows` follows the last activation; without an activation there, return None. The multipliers are the
        best ones for each pair, or the best ones for all pairs together if each pair would take too long.
        """
        if not self.layers or self.last is not None:
            return None
        rows, count = _plain(rows), len(rows)
        found = best_bound(self.layers, rows - rows.mean(0))
        if found is None:
            return None
        gain, shape = found
        squares = shape.diagonal() + shape.diagonal()[:, None] - 2 * shape
        bounds = gain * (squares.clamp_min(0) + _SQUARES).sqrt()
        units = sum(len(each.weight) for each in self.layers)
        for pair in itertools.combinations(range(count), 2) if count**2 * units**3 <= _EFFORT else ():
            own = best_bound(self.layers, rows[pair[0]][None] - rows[pair[1]])
            if own is not None:
                bounds[pair] = bounds[pair[::-1]] = min(own[0], float(bounds[pair]))
        return bounds * self.start


def _plain(weight: Tensor) -> Tensor:
    return precise(weight.detach()).cpu()


def narrowed(weight: Tensor) -> Tensor:
    """Return a matrix that has the same W W^T, and no more columns than rows."""
    return torch.linalg.qr(weight.mT, mode="r").R.mT if weight.shape[1] > weight.shape[0] else weight


def best_bound(layers: Sequence[Layer], last: Tensor) -> tuple[float, Tensor] | None:
    r"""Return a Lipschitz bound g after the matrix `last`, and R, shape (out, out).

    Differences there satisfy :math:`\delta^T R^{-1} \delta \le g^2 \|\delta_0\|^2` with :math:`R \preceq 1`. Return
    None if a norm is zero or not finite, or if rounding could make the bound too small.
    """
    scale, units, end = _normalized(layers, last)
    if not 0 < scale < math.inf:
        return None
    inside, outside, depths = _system(units, end)
    least = _least(inside, narrowed(outside.mT).mT, depths)
    diagonal = torch.cat([least[:1].expand(inside.shape[1] - len(inside)), least[1:]])
    spread, products = diagonal.rsqrt(), (inside.mT * least[1:]) @ inside
    form = (diagonal.diag() - products) * spread[:, None] * spread
    smallest = float(torch.linalg.eigvalsh(form)[0])
    # The rounding of an entry is relative to the size of the summands in it.
    rounding = 8 * len(form) * torch.finfo(form.dtype).eps * float(2 - form.diagonal().amin()) / max(smallest, 1e-300)
    if rounding > _ROUNDING:
        return None
    root = torch.linalg.solve_triangular(torch.linalg.cholesky(form), (outside * spread).mT, upper=False)
    norm = float(matrix_norm(root)) * (1 + rounding)
    shape = root.mT @ root
    return scale * math.sqrt(float(least[0])) * norm, shape / norm**2 if norm else shape


def _normalized(layers: Sequence[Layer], last: Tensor) -> tuple[float, list[Layer], Tensor]:
    """Return a factor of the bound, the layers with norm 1 and slopes up to 1, and the last matrix with norm 1."""
    norm = matrix_norm(last)
    scale, normalized = float(norm), []
    for layer in layers:
        size, slope = matrix_norm(layer.weight), torch.maximum(layer.low.abs(), layer.high.abs()).amax()
        scale *= float(size * slope)
        normalized.append(Layer(layer.weight / size, layer.low / slope, layer.high / slope))
    return scale, normalized, last / norm


def _system(layers: Sequence[Layer], last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return A for all units that are not linear, C, and the index of each unit's layer, counted from 0."""
    free = [layer.high > layer.low for layer in layers]
    counts = [int(units.sum()) for units in free]
    start = layers[0].weight.shape[1]
    value, inside = torch.eye(start, start + sum(counts), dtype=last.dtype), []
    for (weight, low, high), units, count in zip(layers, free, counts, strict=True):
        before = weight @ value
        value = (low + high)[:, None] / 2 * before
        value[units, torch.arange(start, start + count)] += (high - low)[units] / 2
        inside.append(before[units])
        start += count
    return torch.cat(inside), last @ value, torch.arange(len(layers)).repeat_interleave(torch.tensor(counts))


def _least(inside: Tensor, outside: Tensor, depths: Tensor) -> Tensor:
    r"""Return a nearly minimal :math:`\rho` and its multipliers, with :math:`K \succ C^T C`."""
    ends, (units, size) = outside.mT @ outside, inside.shape
    inputs = size - units

    def factor(values: Tensor) -> Tensor | None:
        form = torch.cat([values[:1].expand(inputs), values[1:]]).diag() - (inside.mT * values[1:]) @ inside - ends
        root, failed = torch.linalg.cholesky_ex(form)
        return None if failed or bool((values <= 0).any()) else root

    def barrier(values: Tensor, root: Tensor) -> float:
        return float(weight * values[0] - 2 * root.diagonal().log().sum() - values[1:].log().sum())

    # A unit moves no more than the input and the units before it, so K - C^T C is at least 1 for these values.
    layers = int(depths.max()) + 1 if units else 0
    values = torch.cat([depths.new_tensor([layers + 1]), layers - depths]).to(inside.dtype).exp2()
    root = cast(Tensor, factor(values))
    weight = (size + units) / float(values[0])
    for _ in range(_STEPS):
        slope, step = _newton(values, root, inside, weight)
        length = 1.0
        while length > _SHORTEST:
            changed = values * (1 + length * step)
            found = factor(changed)
            if found is not None and barrier(changed, found) <= barrier(values, root) - slope * length / 10:
                values, root = changed, found
                break
            length /= 2
        if slope < _NEAR or length <= _SHORTEST:
            # On the central path, the distance from the minimum is known.
            if (size + units) / weight < _CLOSE * float(values[0]):
                break
            weight *= _SHARPER
    return values


def _newton(values: Tensor, root: Tensor, inside: Tensor, weight: float) -> tuple[float, Tensor]:
    """Return how fast the barrier decreases along Newton's step, and the step relative to the values."""
    inputs = inside.shape[1] - len(inside)
    inverse = torch.cholesky_inverse(root)
    product = inside @ inverse
    own, across, among = inverse[inputs:, inputs:], product[:, inputs:], product @ inside.mT
    start = inverse[:inputs]
    gradient = torch.cat([weight - start.diagonal().sum()[None], among.diagonal() - own.diagonal()]) * values
    gradient[1:] -= 1
    curvature = torch.empty(len(values), len(values), dtype=values.dtype)
    curvature[0, 0] = start[:, :inputs].square().sum()
    curvature[0, 1:] = curvature[1:, 0] = start[:, inputs:].square().sum(0) - product[:, :inputs].square().sum(1)
    curvature[1:, 1:] = own.square() - across.square() - across.mT.square() + among.square()
    curvature *= values[:, None] * values
    curvature.diagonal()[1:] += 1
    step = -torch.linalg.solve(curvature, gradient)
    return -float(gradient @ step), step
