"""The minimax concave penalty: the 1-norm near zero, and constant for large entries."""

from collections.abc import Iterable

from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.penalties.elementwise import elementwise_penalty
from lightning_reg.functional.tensors.weights import check_fits, real_weights

__all__ = ["mcp"]


def mcp(weights: Tensor | Iterable[Tensor], strength: float = 1.0, gamma: float = 3.0) -> Tensor:
    r"""Return the minimax concave penalty of all weights, :math:`\sum \lambda m - m^2 / (2 \gamma)`.

    Here :math:`m = \min(|w|, \gamma \lambda)`, so each larger entry costs :math:`\gamma \lambda^2 / 2`. Near zero it
    selects features like the 1-norm, but unlike the 1-norm it does not shrink large entries. Its gradient is
    :math:`\operatorname{sign}(w) \max(\lambda - |w| / \gamma, 0)`, with sign(0) = 0. Exact up to rounding; sums run in
    float32 at least.

    Args:
        weights: Real floating-point tensors of any shapes, or a single one. A `DTensor` counts once over all ranks (a
            collective call). No weights, or empty ones, give 0.
        strength: :math:`\lambda`, >= 0.
        gamma: :math:`\gamma`, > 0: the distance from zero at which the penalty becomes constant, in multiples of the
            strength. A large :math:`\gamma` gives the 1-norm.

    Returns:
        The penalty, shape (), differentiable.

    Raises:
        TypeError: If `weights` holds anything but such tensors, or `strength` or `gamma` is not a number.
        ValueError: If `strength` or `gamma` is out of range, or `strength` infinite in the precision of a weight.

    Example:
        >>> import torch
        >>> mcp([torch.tensor([1.0, -2.0, 10.0])], strength=2.0, gamma=2.0)
        tensor(8.7500)

    Reference:
        Zhang, Nearly Unbiased Variable Selection under Minimax Concave Penalty, 2010, arXiv:1002.4734.

    """
    strength, gamma = _checks.non_negative("strength", strength), _checks.positive("gamma", gamma)
    tensors = real_weights(weights)
    check_fits("strength", strength, tensors)
    return elementwise_penalty(tensors, l1=strength, l2=-1 / (2 * gamma) if strength else 0.0)
