r"""ECLipsE-Fast: a bound for chains of matrices and activations, below the product of their single bounds.

Chains of few units have a sharper bound, see `multipliers`.

A difference :math:`\delta_0` of the input causes a difference :math:`\delta` at a place in the chain. It satisfies

.. math:: \delta^T R^{-1} \delta \le g^2 \|\delta_0\|^2, \qquad 0 \preceq R \preceq 1,

with :math:`R = 1` at the input. A matrix W turns R into :math:`W R W^T`, exactly. An activation with slopes in [0, 1]
has :math:`\delta_y^T (\delta_x - \delta_y) \ge 0`. With the multiplier 2 of Xu & Sivaranjani, it turns R into
:math:`(2 - R)^{-1}`. This is below 1 in every direction in which R is below 1.

Reference: Xu & Sivaranjani, ECLipsE: Efficient Compositional Lipschitz Constant Estimation for Deep Neural Networks,
2024, arXiv:2404.04375.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.multipliers import History
from lightning_reg.functional.lipschitz.rounding import UPWARDS, precise, smaller, times
from lightning_reg.functional.spectral.norms import matrix_norm

# With more features, the matrices of a chain would cost more than the rest of the network.
_WIDEST = 4096


@dataclass(frozen=True)
class Chain:
    """The bound of differences at one place in a chain."""

    gain: float
    """g, an upper bound of how much differences grow up to this place."""
    shape: Tensor | None = None
    """R, float64, shape (features, features); None for the identity."""
    history: History | None = None
    """The layers of the chain, if they have few units."""
    sharper: "Chain | None" = None
    """The gain and R from the best multipliers. It exists after a matrix of a chain that has a history."""

    @classmethod
    def after(cls, value: float) -> "Chain":
        """Return a chain that begins where differences have grown by a factor of at most `value`."""
        return cls(value, history=History(value))

    @property
    def least(self) -> float:
        """Return the smallest of the known upper bounds."""
        return self.gain if self.sharper is None else smaller(self.gain, self.sharper.gain)

    def linear(self, weight: Tensor, norm: float, gram: Tensor | None = None) -> "Chain | None":
        """Return the bound after a product with a matrix W of known norm, or None if W is complex or too large.

        W has the shape (out, in). `gram` is W W^T divided by the square of the norm, if it is known.
        """
        if max(weight.shape) > _WIDEST or weight.is_complex():
            return None
        chain = self._linear(weight, norm, gram)
        history = self.history and self.history.linear(weight)
        found = history and history.bound()
        sharper = Chain(found[0], found[1].to(precise(weight[:0]).device)) if found else None
        return replace(chain, history=history, sharper=sharper)

    def _linear(self, weight: Tensor, norm: float, gram: Tensor | None) -> "Chain":
        if not 0 < norm < math.inf:  # also for NaN
            return Chain(times(self.gain, norm))
        if self.shape is None and gram is not None:
            return Chain(times(self.gain, norm), gram)
        unit = precise(weight) / norm
        if self.shape is None:
            return Chain(times(self.gain, norm), unit @ unit.mT)
        product = unit @ self.shape @ unit.mT
        if weight.shape[0] <= weight.shape[1]:
            square = float(matrix_norm(product))
        else:
            square = float(matrix_norm(unit @ _root(self.shape))) ** 2
        square *= UPWARDS**2
        return Chain(times(self.gain, norm * math.sqrt(square)), product / square if square else product)

    def activated(self, low: float, high: float) -> "Chain":
        """Return the bound after an activation with slopes from `low` to `high`."""
        slope = max(abs(low), abs(high))
        history = self.history and self.history.activated(low, high)
        if self.shape is None or low < 0:
            return Chain(times(self.least, slope), history=history)
        identity = torch.eye(len(self.shape), dtype=self.shape.dtype, device=self.shape.device)
        # The eigenvalues of 2 - R lie between 1 and 2, so its inverse loses no precision.
        factor = torch.linalg.cholesky(2 * identity - self.shape)
        return Chain(times(self.gain, slope), torch.cholesky_inverse(factor), history)

    def activated_between(self, low: Tensor, high: Tensor) -> "Chain":
        r"""Return the bound after an activation whose slopes are bounded for each feature, shape (features,).

        Let no slope be negative. Features F with a single slope are linear. The other features, U, have the multiplier
        of `activated`. Minimizing the quadratic form over the inputs of U gives a form whose inverse has the blocks
        :math:`(2 - R_{UU})^{-1} =: N`, :math:`R_{FU} N` and :math:`R_{FF} + R_{FU} N R_{UF}`. Each feature is then
        multiplied by its largest slope.
        """
        history = self.history and self.history.activated(low, high)
        if bool((low < 0).any()):
            slope = float(torch.maximum(low.abs(), high.abs()).amax())
            return Chain(times(self.least, slope * UPWARDS), history=history)
        identity = torch.eye(len(high), dtype=torch.float64, device=high.device)
        shape = identity if self.shape is None else self.shape
        free = high > low
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(2 * identity[free][:, free] - shape[free][:, free]))
        across = shape[:, free] @ inverse
        after = shape + across @ shape[free]
        after[:, free], after[free] = across, across.mT
        after[free.nonzero(), free.nonzero().mT] = inverse
        after = after * high[:, None] * high
        square = float(matrix_norm(after)) * UPWARDS
        return Chain(times(self.gain, math.sqrt(square)), after / square if square else after, history)

    def scaled(self, factor: float) -> "Chain":
        """Return the bound after a product with a number."""
        history, sharper = self.history and self.history.scaled(factor), self.sharper and self.sharper.scaled(factor)
        return Chain(times(self.gain, factor), self.shape, history, sharper)

    def of_entries(self) -> Tensor:
        """Return the bounds of single features: |d^T x| <= g sqrt(d^T R d), where d is a row of the identity."""
        bounds = torch.as_tensor(self.gain, dtype=torch.float64)
        if self.shape is not None:
            bounds = self.shape.diagonal().clamp_min(0).sqrt() * self.gain * UPWARDS
        return bounds if self.sharper is None else torch.minimum(bounds, self.sharper.of_entries())


def _root(shape: Tensor) -> Tensor:
    """Return C with C C^T >= R. The excess is just large enough to cover rounding."""
    identity = torch.eye(len(shape), dtype=shape.dtype, device=shape.device)
    root: Tensor = torch.linalg.cholesky(shape + 1e-12 * identity)
    return root
