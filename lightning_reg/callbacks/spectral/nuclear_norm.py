"""The nuclear norm penalty, for layers of low rank."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.spectral.matrix_penalty import MatrixPenalty
from lightning_reg.callbacks.trainer.packages import MisconfigurationException
from lightning_reg.functional.proximal.optimality import largest_residual
from lightning_reg.functional.spectral.nuclear import nuclear_norm, nuclear_residual, soften_singular_values_


@final
class NuclearNormPenalty(MatrixPenalty):
    r"""Add :math:`\lambda \sum_l \|W_l\|_*` to the objective, the sums of singular values: layers of low rank.

    It is an L1 penalty on singular values. With `mode="proximal"`, small singular values become exactly zero: after
    each step, with the optimizer's step size :math:`\eta`, the weight becomes :math:`U \max(S - \eta\lambda, 0) V^T`.
    `lightning_reg.functional.factorize` then replaces a layer of low rank by two smaller layers. In the other modes,
    the gradient is :math:`U V^T` over the nonzero singular values. The matrix of a kernel has a row for each output
    unit, whatever the layout of the layer; stacked experts are one matrix each. Each step computes a singular value
    decomposition of each layer.

    `mode="proximal"` needs one step size for all entries of a weight, as in SGD; Adam has many. In half precision, the
    rank is low up to rounding. Logged as `reg/penalty/nuclear_norm`.

    Args:
        strength: :math:`\lambda`, >= 0.
        select: Which weights, see `Penalty`. Each needs at least two dimensions.
        mode: `"loss"`, `"grad"` or `"proximal"`, see `Penalty`.
        schedule: Factor on the strength over the optimizer steps, see `Penalty`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, see `Penalty`, or a selected weight has fewer than two dimensions or
            is computed by a parametrization.
        MisconfigurationException: With `mode="proximal"`, if an optimizer uses several step sizes within a weight.

    Example:
        >>> NuclearNormPenalty(1e-3, mode="grad")
        NuclearNormPenalty(strength=0.001, select=None, mode='grad', schedule=None)

    Reference:
        Recht, Fazel & Parrilo, Guaranteed Minimum-Rank Solutions of Linear Matrix Equations via Nuclear Norm
        Minimization, 2010, arXiv:0706.4138. The proximal operator: Cai, Candes & Shen, A Singular Value Thresholding
        Algorithm for Matrix Completion, 2010, arXiv:0810.3286.

    """

    has_one_step_size = True
    mixes_entries = True

    @override
    def term(self, matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Callable[[], Tensor]]:
        return nuclear_norm(matrix, dtype)

    @override
    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        self.proximal_of(weights)(weights, factors)

    @override
    def proximal_of(self, weights: list[Tensor]) -> Callable[[list[Tensor], list[float | Tensor]], None]:
        dims = self.dims_of(weights)

        def shrink(copies: list[Tensor], factors: list[float | Tensor]) -> None:
            for weight, factor, dim in zip(copies, factors, dims, strict=True):
                if isinstance(factor, Tensor) and factor.numel() > 1:
                    msg = (
                        f'{type(self).__name__} with mode="proximal" needs one step size for all entries of a weight,'
                        f" but the optimizer's step sizes have shape {tuple(factor.shape)}. Use SGD,"
                        ' or mode="grad".'
                    )
                    raise MisconfigurationException(msg)
                one = factor.reshape(()) if isinstance(factor, Tensor) else factor
                soften_singular_values_(weight, one, dim)

        return shrink

    @override
    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor:
        dims = self.dims_of(weights)
        return largest_residual([nuclear_residual(*each) for each in zip(weights, grads, dims, strict=True)])
