"""Constraints on the norm of each unit, as Keras has them."""

from collections.abc import Sequence
from typing import final

from torch import Tensor
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.callbacks.constraints.base import Constraint
from lightning_reg.functional.constraints.norms import limit_norms_, move_norms_, normalize_
from lightning_reg.functional.penalties.counts import check_dim
from lightning_reg.selection import Select


class _UnitConstraint(Constraint):
    """A constraint on units along one dimension, as `register_layer` counts dimensions."""

    takes_shards = True

    def __init__(self, dim: int, select: str | Sequence[str] | Select | None) -> None:
        super().__init__(select=select)
        self.dim = _checks.integer("dim", dim)

    @override
    def check(self, name: str, weight: Tensor) -> None:
        check_dim([weight], self.dim)


@final
class MaxNorm(_UnitConstraint):
    r"""Keep the 2-norm of each unit at c or below: after each step, :math:`w_u \leftarrow w_u \min(1, c / \|w_u\|)`.

    A unit is the slice of a weight at one index along `dim`: by default the weights into one output unit. Units with a
    norm of at most c are not touched. Together with dropout, it permits high learning rates.

    Logged: nothing during training; TensorBoard's text `reg/setup_constraints` shows what happens to each weight.

    Args:
        max_norm: c, > 0.
        dim: 0 for the weights into each output unit or filter, 1 for the weights out of each input unit or channel. The
            layout does not matter, also in transposed convolutions, in `Conv1D` of transformers and in your own layers
            after `register_layer`. The output units of an embedding are its rows, one for each token, as with
            `max_norm` of `nn.Embedding`; axis 0 of Keras runs over the tokens, so the constraint there is `dim=1`. In a
            parameter that sits in no layer, `dim` is the dimension of the tensor.
        select: Which weights, see `Constraint`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Constraint`, or a selected weight has no dimension `dim`.
        MisconfigurationException: See `Constraint`.

    Example:
        >>> MaxNorm(3.0, select="encoder.*")
        MaxNorm(max_norm=3.0, dim=0, select='encoder.*')

    Reference:
        Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014; Keras,
        `keras.constraints.MaxNorm`.

    """

    change = "shrinks"
    survives_averaging = True

    def __init__(self, max_norm: float, dim: int = 0, *, select: str | Sequence[str] | Select | None = None) -> None:
        super().__init__(dim, select)
        self.max_norm = _checks.positive("max_norm", max_norm)

    @override
    def project(self, weights: list[Tensor]) -> None:
        limit_norms_(weights, self.max_norm, dim=self.dim)


@final
class UnitNorm(_UnitConstraint):
    r"""Keep the 2-norm of each unit at 1: after each step, :math:`w_u \leftarrow w_u / \|w_u\|`.

    A unit is the slice of a weight at one index along `dim`: by default the weights into one output unit. A unit of
    zeros has no direction, and stays.

    Logged: nothing during training; TensorBoard's text `reg/setup_constraints` shows what happens to each weight.

    Args:
        dim: The dimension along which units lie, see `MaxNorm`.
        select: Which weights, see `Constraint`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Constraint`, or a selected weight has no dimension `dim`.
        MisconfigurationException: See `Constraint`.

    Example:
        >>> UnitNorm(select="encoder.*")
        UnitNorm(dim=0, select='encoder.*')

    Reference:
        Keras, `keras.constraints.UnitNorm`.

    """

    change = "norms"

    def __init__(self, dim: int = 0, *, select: str | Sequence[str] | Select | None = None) -> None:
        super().__init__(dim, select)

    @override
    def project(self, weights: list[Tensor]) -> None:
        normalize_(weights, dim=self.dim)


@final
class MinMaxNorm(_UnitConstraint):
    r"""Keep the 2-norm n of each unit between a and b: after each step, n moves a share r of the way into that range.

    :math:`w_u \leftarrow w_u\, (r\, \mathrm{clip}(n, a, b) + (1 - r)\, n) / n`. A unit is the slice of a weight at one
    index along `dim`: by default the weights into one output unit. Units inside the range are not touched. A unit of
    zeros has no direction, and stays.

    Logged: nothing during training; TensorBoard's text `reg/setup_constraints` shows what happens to each weight.

    Args:
        min_norm: a, >= 0.
        max_norm: b, > 0 and at least a.
        rate: r, in [0, 1]. With 1, the rule holds after every step.
        dim: The dimension along which units lie, see `MaxNorm`.
        select: Which weights, see `Constraint`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Constraint`, or a selected weight has no dimension `dim`.
        MisconfigurationException: See `Constraint`.

    Example:
        >>> MinMaxNorm(0.5, 2.0, rate=0.9)
        MinMaxNorm(min_norm=0.5, max_norm=2.0, rate=0.9, dim=0, select=None)

    Reference:
        Keras, `keras.constraints.MinMaxNorm`.

    """

    change = "norms"

    def __init__(
        self,
        min_norm: float,
        max_norm: float,
        rate: float = 1.0,
        dim: int = 0,
        *,
        select: str | Sequence[str] | Select | None = None,
    ) -> None:
        super().__init__(dim, select)
        self.min_norm = _checks.non_negative("min_norm", min_norm)
        self.max_norm = _checks.positive("max_norm", max_norm)
        if self.min_norm > self.max_norm:
            msg = f"`max_norm` must be at least `min_norm`={min_norm}, got {max_norm}."
            raise ValueError(msg)
        self.rate = _checks.in_range("rate", rate, 0, 1)

    @override
    def project(self, weights: list[Tensor]) -> None:
        move_norms_(weights, self.min_norm, self.max_norm, self.rate, dim=self.dim)
