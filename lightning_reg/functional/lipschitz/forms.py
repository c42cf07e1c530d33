r"""The form of a value: its formula in terms of another value, such as the length of each row.

Forms recognize normalizations written by hand. These consist of squares, means, roots and quotients, which have no
bound alone.

A row x is the entries of a value along some dimensions, and r is its length :math:`\|x\|_2`. A network computes
:math:`D(r)^p` from it. D belongs to the smallest set of functions that contains r, and with each D also :math:`a D` for
a > 0, and :math:`D + c`, :math:`\sqrt{D^2 + c}` and :math:`\max(D, c)` for :math:`c \ge 0`. Each such D

- is non-negative, convex and non-decreasing, because the four operations preserve these properties;
- has a non-increasing quotient :math:`D(r) / r`, because the four operations preserve this, too. The limit of the
  quotient for large r is the `slope` :math:`\kappa`, so :math:`D(r) \ge \kappa r`. Since D is convex and its
  derivative tends to the same limit, :math:`D' \le \kappa`.

Let :math:`D_0 = D(0)` be the `start`. The tangent of a convex function at r has the intercept
:math:`D - r D' \le D_0`, and :math:`D - r D' \ge 0`, because D / r does not increase. For k > 0, the Jacobian of
:math:`x \mapsto x D^{-k}` has the eigenvalue :math:`D^{-k}` orthogonal to x, and :math:`(D - k r D') D^{-k-1}` along x,
with

.. math:: -(k - 1) D \le D - k r D' \le D.

No eigenvalue exceeds :math:`\max(1, k - 1) D_0^{-k}` in size, so this bounds the Lipschitz constant of a row. If D has
a kink, the bound holds on both sides of it. Near an example, rows have a least length, and the least D replaces
:math:`D_0`. For :math:`k \ge 1`, the length of the result is

.. math:: r D^{-k} = \frac r D D^{1-k} \le \frac 1 \kappa D_0^{1-k}.

RMSNorm has :math:`D = \sqrt{r^2 / d + \epsilon}` and k = 1. Its constant is :math:`1 / \sqrt \epsilon`, attained at 0,
and the length of its results is at most :math:`\sqrt d`. LayerNorm is RMSNorm of x minus its mean, and subtracting the
mean is a projection. For :math:`p \le 1`, the power :math:`D^p` itself has the slope
:math:`|p| D' D^{p-1} \le |p| \kappa D_0^{p-1}`.
"""

import math
from dataclasses import dataclass, field, replace

from typing_extensions import override

from lightning_reg.functional.lipschitz.rounding import UPWARDS, power, times

# With larger constants or exponents, powers might overflow or underflow.
_LARGEST, _STEEPEST = 1e25, 10.0


class Form:
    """The form of a value. Two values with the same form object have the same numbers in the same order."""

    def lipschitz(self, numbers: int) -> float:  # noqa: ARG002  # lengths need it
        """Return the Lipschitz bound for a value of `numbers` entries of this form; infinity if the form gives none."""
        return math.inf


@dataclass(frozen=True)
class Centered(Form):
    """A value minus its mean along `dims`, which is a projection. Two with equal `of` and `dims` are equal."""

    of: Form
    dims: tuple[int, ...]
    bound: float = field(compare=False)
    """The bound of the value `of`, which also holds for the projection."""

    @override
    def lipschitz(self, numbers: int) -> float:
        return self.bound


@dataclass(frozen=True, eq=False)
class Scaled(Form):
    """A value with each entry multiplied by a constant."""

    of: Form
    gain: float
    """The largest absolute value of the constants."""


@dataclass(frozen=True, eq=False)
class Squares(Form):
    """The square of each entry of a value."""

    of: Form
    shape: tuple[int, ...]
    bound: float
    """The bound of the value `of`."""


@dataclass(frozen=True, eq=False)
class OfRows(Form):
    """One number for each row of a value.

    The numbers are either in the order of the rows, in any shape, or repeated at each entry of their row.
    """

    of: Form
    shape: tuple[int, ...]
    """The shape of the value `of`."""
    dims: tuple[int, ...]
    """The dimensions along which the rows lie, counted from the first."""
    bound: float
    """The bound of the value `of`."""

    @property
    def kept(self) -> tuple[int, ...]:
        """Return the shape of one number for each row that broadcasts to the rows."""
        return tuple(1 if dim in self.dims else size for dim, size in enumerate(self.shape))

    @property
    def size(self) -> int:
        """Return the number of entries of a row."""
        return math.prod(self.shape[dim] for dim in self.dims)


@dataclass(frozen=True, eq=False)
class Mean(OfRows):
    """The mean of each row."""


@dataclass(frozen=True, eq=False)
class Length(OfRows):
    """A power of D of the length of each row, perhaps times constants. The file's docstring defines D."""

    start: float = 0.0
    slope: float = 1.0
    power: float = 1.0
    gain: float | None = None
    """The largest absolute value of the constants that are not part of D; None if there are none."""

    @override
    def lipschitz(self, numbers: int) -> float:
        if self.power > 1 or not math.prod(self.shape):
            return math.inf
        steepest = 1.0 if self.power == 1 else _power(self.start, self.power - 1)
        copies = numbers * self.size / math.prod(self.shape)
        slope = times(abs(self.power) * self.slope * math.sqrt(copies), times(steepest, self._factor))
        return times(self.bound, slope) * UPWARDS

    def normalized(self, shortest: float = 0.0) -> tuple[float, float]:
        """Return the Lipschitz constant and the largest length of the rows, multiplied by these numbers.

        No row is shorter than `shortest`.
        """
        if not self.power < 0:
            return math.inf, math.inf
        least = max(self.start, self.slope * shortest)
        constant = times(max(1.0, -self.power - 1) * _power(least, self.power), self._factor) * UPWARDS
        if self.power > -1:
            return constant, math.inf
        length = _power(self.slope, -1.0) * _power(least, self.power + 1)
        return constant, times(length, self._factor) * UPWARDS

    @property
    def is_mean_square(self) -> bool:
        """Return whether the numbers are the mean squares of the entries of each row."""
        is_plain = self.start == 0 and self.power == 2 and self.gain is None  # noqa: PLR2004  # a square
        return is_plain and math.isclose(self.slope**2 * self.size, 1, rel_tol=1e-12)

    def raised(self, exponent: float) -> "Length | None":
        """Return the form of a power of these numbers; None if it is not known."""
        exponent *= self.power
        is_known = self.gain is None and 1 / _STEEPEST <= abs(exponent) <= _STEEPEST
        return replace(self, power=exponent) if is_known else None

    def plus(self, constant: float) -> "Length | None":
        """Return the form of these numbers plus a constant; None if it is not known."""
        if self.gain is not None or not 0 <= constant <= _LARGEST:
            return None
        if self.power == 1:
            return self._from(self.start + constant)
        return self._from(math.hypot(self.start, math.sqrt(constant))) if self.power == 2 else None  # noqa: PLR2004  # a square

    def scaled(self, factor: float) -> "Length":
        """Return the form of these numbers times a constant."""
        if self.gain is None and 1 / _LARGEST <= factor <= _LARGEST:
            inner = factor ** (1 / self.power)
            if 1 / _LARGEST <= self.slope * inner <= _LARGEST and self.start * inner <= _LARGEST:
                return replace(self, start=self.start * inner, slope=self.slope * inner)
        return self.gained(abs(factor))

    def gained(self, factor: float) -> "Length":
        """Return the form of these numbers times constants of absolute value at most `factor`."""
        return replace(self, gain=times(self._factor, factor))

    def limited(self, least: float | None, most: float | None) -> "Length | None":
        """Return the form of these numbers, clamped between two constants; None if it is not known."""
        limit, other = (least, most) if self.power > 0 else (most, least)
        if self.gain is not None or limit is None or other is not None:
            return None
        if limit <= 0 < self.power:
            return self
        is_known = 1 / _LARGEST <= limit <= _LARGEST
        return self._from(max(self.start, limit ** (1 / self.power))) if is_known else None

    def _from(self, start: float) -> "Length | None":
        return replace(self, start=start) if start <= _LARGEST else None

    @property
    def _factor(self) -> float:
        return 1.0 if self.gain is None else self.gain


def centered(form: Form, dims: tuple[int, ...], bound: float) -> Form:
    """Return the form of a value minus its mean along `dims`, given the form and bound of the value."""
    return form if isinstance(form, Centered) and form.dims == dims else Centered(form, dims, bound)


def _power(base: float, exponent: float) -> float:
    """Return a power of a number >= 0, rounded up."""
    if base == 0 and exponent < 0:
        return math.inf
    return power(base, exponent)
