r"""What a value is, as a formula of another value: lengths of its rows, and what a row divided by its length is.

So normalizations written by hand are recognized, out of squares, means, roots and quotients that have no bound alone.
A row x has the entries of a value along some dimensions, and r is its length :math:`\|x\|_2`. A network computes
:math:`D(r)^p` from it, with D in the smallest set of functions that has r, and with D also :math:`a D` for a > 0,
:math:`D + c`, :math:`\sqrt{D^2 + c}` and :math:`\max(D, c)` for :math:`c \ge 0`. Each D in it

- is at least 0, convex, and does not fall: scaling, adding, the 2-norm and the maximum keep that;
- has a quotient :math:`D(r) / r` that does not rise, for these four keep that, too. Its limit for large r is the
  `slope` :math:`\kappa`. So :math:`D(r) \ge \kappa r`, and :math:`D' \le \kappa`, since D is convex and its slope tends
  to the same limit.

With :math:`D_0 = D(0)`, the `start`: the tangent of a convex function at r meets 0 at :math:`D - r D' \le D_0`, and
:math:`D - r D' \ge 0`, since D / r does not rise. The Jacobian of :math:`x \mapsto x D^{-k}`, k > 0, has the eigenvalue
:math:`D^{-k}` orthogonal to x, and :math:`(D - k r D') D^{-k-1}` along x, with

.. math:: -(k - 1) D \le D - k r D' \le D.

No eigenvalue is larger than :math:`\max(1, k - 1) D_0^{-k}`, which bounds the Lipschitz constant of a row. Where D has
kinks, the same holds on both sides of them. For :math:`k \ge 1`, the length of the result is

.. math:: r D^{-k} = \frac r D D^{1-k} \le \frac 1 \kappa D_0^{1-k}.

For RMSNorm, :math:`D = \sqrt{r^2 / d + \epsilon}` and k = 1: the constant is :math:`1 / \sqrt \epsilon`, attained at 0,
and results are no longer than :math:`\sqrt d`. LayerNorm is that of x less its mean, which is a projection. A power of
D itself has the slope :math:`|p| D' D^{p-1} \le |p| \kappa D_0^{p-1}`, if :math:`p \le 1`.
"""

import math
from dataclasses import dataclass, field, replace

from typing_extensions import override

from lightning_reg.functional.lipschitz.rounding import UPWARDS, power, times

# Beyond these, powers might be too large or too small for numbers.
_LARGEST, _STEEPEST = 1e25, 10.0


class Form:
    """What a value is. The same object stands for the same numbers in the same order, another for any others."""

    def lipschitz(self, numbers: int) -> float:  # noqa: ARG002  # lengths need it
        """Return the bound of so many numbers of this form from the network's input; infinity if it gives none."""
        return math.inf


@dataclass(frozen=True)
class Centered(Form):
    """A value less its mean along dimensions: a projection. Two of the same value and dimensions are the same."""

    of: Form
    dims: tuple[int, ...]
    bound: float = field(compare=False)
    """Of that value, and so of this."""

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
    """Of that value."""


@dataclass(frozen=True, eq=False)
class OfRows(Form):
    """One number for each row of a value.

    The numbers are in the order of the rows, whatever dimensions they have, or there is one at each entry of its row.
    """

    of: Form
    shape: tuple[int, ...]
    """Of that value."""
    dims: tuple[int, ...]
    """Along which its rows lie, counted from the first."""
    bound: float
    """Of that value."""

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
    """A power of D of the length of each row, with D as above, perhaps times constants."""

    start: float = 0.0
    slope: float = 1.0
    power: float = 1.0
    gain: float | None = None
    """The largest absolute value of the constants, if there are any beside those in D."""

    @override
    def lipschitz(self, numbers: int) -> float:
        if self.power > 1 or not math.prod(self.shape):
            return math.inf
        steepest = 1.0 if self.power == 1 else _power(self.start, self.power - 1)
        copies = numbers * self.size / math.prod(self.shape)
        slope = times(abs(self.power) * self.slope * math.sqrt(copies), times(steepest, self._factor))
        return times(self.bound, slope) * UPWARDS

    def normalized(self) -> tuple[float, float]:
        """Return the Lipschitz constant of the rows times these numbers, and their largest length."""
        if not self.power < 0:
            return math.inf, math.inf
        constant = times(max(1.0, -self.power - 1) * _power(self.start, self.power), self._factor) * UPWARDS
        if self.power > -1:
            return constant, math.inf
        length = _power(self.slope, -1.0) * _power(self.start, self.power + 1)
        return constant, times(length, self._factor) * UPWARDS

    def raised(self, exponent: float) -> "Length | None":
        """Return the power of it; None if that is not known."""
        exponent *= self.power
        is_known = self.gain is None and 1 / _STEEPEST <= abs(exponent) <= _STEEPEST
        return replace(self, power=exponent) if is_known else None

    def plus(self, constant: float) -> "Length | None":
        """Return it plus a constant."""
        if self.gain is not None or not 0 <= constant <= _LARGEST:
            return None
        if self.power == 1:
            return self._from(self.start + constant)
        return self._from(math.hypot(self.start, math.sqrt(constant))) if self.power == 2 else None  # noqa: PLR2004  # a square

    def scaled(self, factor: float) -> "Length":
        """Return it times a constant."""
        if self.gain is None and 1 / _LARGEST <= factor <= _LARGEST:
            inner = factor ** (1 / self.power)
            if 1 / _LARGEST <= self.slope * inner <= _LARGEST and self.start * inner <= _LARGEST:
                return replace(self, start=self.start * inner, slope=self.slope * inner)
        return self.gained(abs(factor))

    def gained(self, factor: float) -> "Length":
        """Return it times constants that are no larger."""
        return replace(self, gain=times(self._factor, factor))

    def limited(self, least: float | None, most: float | None) -> "Length | None":
        """Return it between two constants."""
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
    """Return what a value of this form and bound, less its mean along dimensions, is."""
    return form if isinstance(form, Centered) and form.dims == dims else Centered(form, dims, bound)


def _power(base: float, exponent: float) -> float:
    """Return a power of a number >= 0, rounded up."""
    if base == 0 and exponent < 0:
        return math.inf
    return power(base, exponent)
