"""The proximal operator of the minimax concave penalty: zeros like the 1-norm, but large entries are untouched."""

import math
from collections.abc import Iterable
from typing import overload

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.proximal.elementwise import Factors, factors, outputs
from lightning_reg.functional.tensors.chunks import NumberOrTensor
from lightning_reg.functional.tensors.shards import local_parts
from lightning_reg.functional.tensors.weights import check_fits

__all__ = ["mcp_prox"]


@overload
def mcp_prox(
    weights: Tensor, strength: float = 1.0, gamma: float = 3.0, step_size: Factors = 1.0, *, inplace: bool = False
) -> Tensor: ...
@overload
def mcp_prox(
    weights: Iterable[Tensor],
    strength: float = 1.0,
    gamma: float = 3.0,
    step_size: Factors = 1.0,
    *,
    inplace: bool = False,
) -> list[Tensor]: ...
@torch.no_grad()
def mcp_prox(
    weights: Tensor | Iterable[Tensor],
    strength: float = 1.0,
    gamma: float = 3.0,
    step_size: Factors = 1.0,
    *,
    inplace: bool = False,
) -> Tensor | list[Tensor]:
    r"""Return the proximal operator of `mcp`, :math:`\arg\min_u \frac{1}{2 \eta} (u - w)^2 + \mathrm{MCP}(u)`, exactly.

    For a step size :math:`\eta` below :math:`\gamma`, it is the firm threshold: 0 up to :math:`|w| = \eta \lambda`, w
    from :math:`\gamma \lambda` on, and linear in between,
    :math:`\operatorname{sign}(w) (|w| - \eta \lambda) / (1 - \eta / \gamma)`. For larger step sizes, the minimised
    function is concave up to :math:`\gamma \lambda`, so its minimum is at 0 or at w: at w if
    :math:`|w| > \lambda \sqrt{\eta \gamma}`, otherwise at 0, also if both are minima.

    Args:
        weights: Real floating-point tensors of any shapes, or a single one. Each rank does its own part of a `DTensor`.
        strength: :math:`\lambda`, >= 0.
        gamma: :math:`\gamma`, > 0.
        step_size: :math:`\eta \ge 0` for all weights, or one for each: a number, or a tensor that broadcasts to the
            weight (for a `DTensor`, to its local part). Entries of tensors are not checked.
        inplace: Whether to change `weights` themselves.

    Returns:
        A list of the results, in the shapes of `weights`, or a tensor for a tensor; without gradient.

    Raises:
        TypeError: If a weight is complex or not a tensor of floating-point numbers, a factor is not a number, or
            `inplace` is not a bool.
        ValueError: If a factor is out of range or infinite in the precision of a weight, or the numbers of step sizes
            and weights differ.

    Example:
        >>> mcp_prox([torch.tensor([0.5, -2.0, 5.0])], strength=1.0, gamma=3.0)
        [tensor([ 0.0000, -1.5000,  5.0000])]

    Reference:
        Zhang, Nearly Unbiased Variable Selection under Minimax Concave Penalty, 2010, arXiv:1002.4734; Gao & Bruce,
        WaveShrink with Firm Shrinkage, 1997, https://www3.stat.sinica.edu.tw/statistica/j7n4/j7n43/j7n43.htm.

    """
    strength, gamma = _checks.non_negative("strength", strength), _checks.positive("gamma", gamma)
    results = outputs(weights, inplace=inplace)
    check_fits("strength", strength, results)
    sizes = factors("step_size", step_size, results)
    shrink_to_zero_or_nothing_(local_parts(results), [size * strength for size in sizes], gamma * strength)
    return results[0] if isinstance(weights, Tensor) else results


@torch.no_grad()
def shrink_to_zero_or_nothing_(weights: list[Tensor], thresholds: list[NumberOrTensor], bound: float) -> None:
    """Apply the operator to weights, in place: with step sizes times strength, and gamma times strength."""
    for weight, threshold in zip(weights, thresholds, strict=True):
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        # Subtracted, because w - w is +0.0, also for -0.0, and w - 0 is w to the bit.
        weight.sub_(_taken(wide.abs(), threshold, bound).copysign(wide))


def _taken(size: Tensor, threshold: NumberOrTensor, bound: float) -> Tensor:
    """Return the amount by which entries of given sizes shrink."""
    if isinstance(threshold, Tensor):
        return torch.where(
            threshold < bound,
            _taken_firmly(size, threshold, bound, bound - threshold),
            torch.where(size <= (threshold * bound).sqrt(), size, 0.0),
        )
    if threshold < bound:
        return _taken_firmly(size, threshold, bound, bound - threshold)
    return torch.where(size <= math.sqrt(threshold * bound), size, 0.0)


def _taken_firmly(size: Tensor, threshold: NumberOrTensor, bound: float, width: NumberOrTensor) -> Tensor:
    # Everything, then less and less, then nothing. If the width is not positive, another rule holds.
    return torch.where(size <= threshold, size, (bound - size).clamp(min=0) * (threshold / width))
