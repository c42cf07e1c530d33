"""Upper bounds of how much a value in a network changes with the network's input."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.chain import Chain
from lightning_reg.functional.lipschitz.forms import Form
from lightning_reg.functional.lipschitz.nested import found
from lightning_reg.functional.lipschitz.parts import Part, entries, joint
from lightning_reg.functional.lipschitz.rounding import UPWARDS, precise, smaller, times

_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
PRODUCT = "the slope of a product of values that depend on the input has no bound"


class NoBoundError(Exception):
    """The reason why an operation has no known bound."""


class Slopes(NamedTuple):
    """The least and the largest slope of a function that works entry by entry."""

    low: float
    high: float
    is_half: bool = False
    """Whether the function is 0 on one side of 0."""


class Scores(NamedTuple):
    r"""A sharper bound of attention scores, or of their softmax.

    If the input changes by 1, the score of row i and column j changes by at most :math:`a_i + b_j`.
    """

    by_row: float
    """The 2-norm of a."""
    by_column: float
    """The 2-norm of b."""
    are_shares: bool = False
    """Whether the softmax of each row was taken."""


@dataclass(frozen=True)
class Extent:
    """Upper bounds of the size of a value, for any input of the network."""

    entries: float = math.inf
    """The largest absolute value of an entry."""
    radius: float = math.inf
    """The largest length of a vector along `dim`."""
    dim: int = -1
    """The dimension of these vectors, counted from the end."""
    scores: Scores | None = None


@dataclass(frozen=True)
class Bound:
    """An upper bound of the Lipschitz constant from the network's input to one of its values."""

    value: float
    chain: Chain | None = None
    """The chain along the last dimension, which gives later operations sharper bounds. Its gain is >= `value`."""
    scaled: "Callable[[Tensor], Bound] | None" = None
    """For the output of a layer: a function from one factor for each channel to the bound of the scaled output."""
    channels: int = -1
    """The dimension of the channels, counted from the end."""
    own: float | None = None
    """The constant of the single layer that made the value."""
    last: "tuple[Tensor, Bound] | None" = None
    """For a product with a matrix, plus constants: the matrix, and the bound before the product."""
    extent: Extent = field(default_factory=Extent)
    """Upper bounds of the size of the value."""
    entries: "Callable[[], Tensor] | None" = None
    """For a convolution: the bounds of single entries, in a shape that broadcasts."""
    form: Form = field(default_factory=Form)
    """The formula of the value."""
    forms: tuple[Form | None, ...] = ()
    """For several tensors with one bound: the form of each."""
    varies: bool = False
    """Whether the value also depends on arbitrary labels. If so, its value at the example is only one of many."""
    has_any_size: bool = False
    """Whether the number of entries may differ for other inputs or labels."""
    source: "Traced | None" = None
    """The value that this value selects entries from, each at most once."""
    parts: tuple[Part, ...] = ()
    """The parts of other values that this value depends on."""

    def after(self, factor: float, slopes: Slopes | None = None) -> "Bound":
        """Return the bound after a function with the Lipschitz constant `factor` and, if known, these slopes."""
        chain = self.chain.activated(slopes.low, slopes.high) if self.chain and slopes else None
        parts = tuple(part.times(factor) for part in self.shifted().parts)
        if slopes == (-1, -1, False):
            parts = (*parts, Part((self,), self.value, "sign", "negated"))
        elif slopes and slopes.is_half:
            turned = next((part for part in self.parts if part.place == "negated"), None)
            side = Part((self,), self.value, "sign", "positive", factor)
            parts = (*parts, side if turned is None else replace(turned, place="negative"))
        return Bound(times(self.value, factor), chain, parts=parts)

    def shifted(self) -> "Bound":
        """Return the bound after adding a constant. The sum of -x and a constant no longer counts as -x."""
        if all(part.place != "negated" for part in self.parts):
            return self
        return replace(self, parts=tuple(part for part in self.parts if part.place != "negated"))

    def between(self, low: Tensor, high: Tensor) -> "Bound":
        """Return the bound after a function whose slopes at each entry lie between `low` and `high`."""
        factor = largest(torch.maximum(low.abs(), high.abs()))
        value = times(self.value, factor)
        if self.chain is None:
            return Bound(value)
        rows = low.flatten(0, -2).amin(0), high.flatten(0, -2).amax(0)
        chain = self.chain.activated_between(*rows)
        return Bound(smaller(value, chain.least), chain)

    def of_entries(self) -> Tensor | float:
        """Return the bounds of single entries, in a shape that broadcasts."""
        if self.entries is not None:
            return self.entries()
        return self.value if self.chain is None else self.chain.of_entries().clamp_max(self.value)


@dataclass(frozen=True)
class Operation:
    """The operation that a rule bounds."""

    output: Any
    """Its result at the example input."""
    apply: Callable[..., Any]
    """A function that repeats the operation with other arguments."""
    module: Any = None
    """The layer, if the operation is a layer: a stand-in in eval mode with plain weights."""
    turns: tuple[float, ...] | None = None
    """For a function of each entry: the inputs at which its slope turns from rising to falling or back, if known."""


@dataclass(frozen=True)
class Traced:
    """A value that depends on the network's input, as rules see it."""

    value: Tensor
    """The value at the example input."""
    bound: Bound
    reach: float = math.inf
    """The largest distance of the network's input from the example."""

    @property
    def _is_near(self) -> bool:
        """Whether the value stays near its value at the example."""
        return math.isfinite(self.reach) and not self.bound.varies and self.value.dtype in _ROUNDING

    def interval(self) -> tuple[Tensor, Tensor] | None:
        """Return the smallest and the largest value of each entry, float64; None if these are not known."""
        if not self._is_near:
            return None
        value = precise(self.value)
        # The value at the example is itself rounded.
        rounding = _ROUNDING[self.value.dtype] * (1 + largest(value))
        deviation = torch.as_tensor(self.bound.of_entries(), dtype=value.dtype, device=value.device) * self.reach
        return value - deviation - rounding, value + deviation + rounding

    def shortest(self, rows: Callable[[Tensor], Tensor]) -> float:
        """Return a lower bound of the lengths of rows near the example; 0 if none is known.

        `rows` maps the value to its rows, shape (..., entries), and enlarges no difference.
        """
        if not self._is_near or not self.value.numel():
            return 0.0
        found = rows(precise(self.value))
        rounding = _ROUNDING[self.value.dtype] * (1 + largest(self.value)) * math.sqrt(found.shape[-1])
        length = float(torch.linalg.vector_norm(found, dim=-1).amin())
        least = (length - times(self.bound.value, self.reach) - rounding) / UPWARDS
        return least if least > 0 else 0.0  # also for NaN

    def radius(self, dim: int = -1) -> float:
        """Return the largest length of a vector along `dim` for any input."""
        extent = self.bound.extent
        length = times(extent.entries, math.sqrt(self.value.shape[dim])) if self.value.ndim else extent.entries
        return smaller(length, extent.radius) if extent.dim == dim else length


def together(bounds: Iterable[float]) -> float:
    """Return the joint bound of several values: the root of the sum of squares."""
    each = list(bounds)
    # `hypot` of infinity and NaN would be infinity.
    return math.nan if any(map(math.isnan, each)) else math.hypot(*each)


def with_parts(bound: Bound, value: Tensor) -> Bound:
    """Return the bound of `value`. If its entries were selected from another value, record it as a part of that."""
    source = bound.source
    if source is None:
        return bound
    return replace(
        bound,
        source=None,
        parts=(*source.bound.parts, *entries(source.bound, source.bound.value, source.value, value)),
    )


def as_one(values: Iterable[Bound]) -> float:
    """Return the joint bound of several values. Disjoint parts of the same value have a smaller bound."""
    bounds = list(values)
    separate = together(each.value for each in bounds)
    shared = joint([each.parts for each in bounds])
    return separate if shared is None else smaller(separate, shared)


def is_whole(value: Tensor) -> bool:
    """Tell whether a tensor has whole numbers or booleans."""
    return not (value.is_floating_point() or value.is_complex())


def traced_in(values: Any) -> Iterator[Traced]:
    """Yield the arguments, at any depth, that depend on the input."""
    return found(values, Traced)


def constant(value: Any) -> Any:
    """Return `value` if it does not depend on the input.

    Raises:
        NoBoundError: If it depends on the input.

    """
    if next(traced_in(value), None) is not None:
        raise NoBoundError(PRODUCT)
    return value


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """Return a constant number or tensor as a tensor in double precision."""
    # In float32, torch's default for numbers, the bound of a factor such as 1 / 3 could be too small.
    kind = None if isinstance(constant(value), Tensor | complex) else torch.float64
    return precise(torch.as_tensor(value, dtype=kind, device=like.device).detach())


def largest(values: Tensor) -> float:
    """Return the largest absolute value, rounded up; NaN if an entry is not finite, 0 if there are no entries."""
    if not values.numel():
        return 0.0
    value = float(precise(values).abs().amax()) * UPWARDS
    return value if math.isfinite(value) else math.nan


def larger(first: float, second: float) -> float:
    """Return the larger of two bounds; NaN if one is NaN."""
    return math.nan if math.isnan(first) or math.isnan(second) else max(first, second)
