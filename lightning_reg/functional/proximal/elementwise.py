"""Proximal operators that work entry by entry, and make weights exactly zero."""

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.tensors.chunks import NumberOrTensor, alike
from lightning_reg.functional.tensors.shards import local_part, local_parts
from lightning_reg.functional.tensors.weights import check_fits, real_weights

__all__ = ["elastic_net_prox", "soft_threshold"]


Factors = NumberOrTensor | Sequence[NumberOrTensor]
"""One factor for all weights, or one for each."""


@overload
def soft_threshold(weights: Tensor, threshold: Factors, *, inplace: bool = False) -> Tensor: ...
@overload
def soft_threshold(weights: Iterable[Tensor], threshold: Factors, *, inplace: bool = False) -> list[Tensor]: ...
@torch.no_grad()
def soft_threshold(
    weights: Tensor | Iterable[Tensor], threshold: Factors, *, inplace: bool = False
) -> Tensor | list[Tensor]:
    r"""Return each entry moved toward 0 by the threshold, and 0 if its magnitude is at most the threshold.

    The proximal operator of :math:`\tau \sum |w|`:
    :math:`\arg\min_u \frac12 (u - w)^2 + \tau |u| = \operatorname{sign}(w) \max(|w| - \tau, 0)`. Exact: an entry with
    :math:`|w| = \tau` becomes 0, and no entry becomes -0.0.

    Args:
        weights: Real floating-point tensors of any shapes, or a single one. Each rank does its own part of a `DTensor`.
        threshold: :math:`\tau \ge 0` for all weights, or one for each: a number, or a tensor that broadcasts to the
            weight (for a `DTensor`, to its local part). Entries of tensors are not checked.
        inplace: Whether to change `weights` themselves.

    Returns:
        A list of the results, in the shapes of `weights`, or a tensor for a tensor; without gradient.

    Raises:
        TypeError: If a weight is complex or not a tensor of floating-point numbers, a threshold is not a number, or
            `inplace` is not a bool.
        ValueError: If a threshold is negative or infinite in the precision of its weight, or the numbers of thresholds
            and weights differ.

    Example:
        >>> soft_threshold([torch.tensor([3.0, -1.0, 0.5])], 1.0)
        [tensor([2., 0., 0.])]

    Reference:
        Donoho, De-noising by Soft-Thresholding, 1995, doi:10.1109/18.382009; Parikh & Boyd, Proximal Algorithms, 2014,
        doi:10.1561/2400000003, section 6.5.2.

    """
    results = outputs(weights, inplace=inplace)
    _soften_(local_parts(results), factors("threshold", threshold, results))
    return results[0] if isinstance(weights, Tensor) else results


@overload
def elastic_net_prox(
    weights: Tensor, alpha: Factors = 1.0, l1_ratio: float = 0.5, *, inplace: bool = False
) -> Tensor: ...
@overload
def elastic_net_prox(
    weights: Iterable[Tensor], alpha: Factors = 1.0, l1_ratio: float = 0.5, *, inplace: bool = False
) -> list[Tensor]: ...
@torch.no_grad()
def elastic_net_prox(
    weights: Tensor | Iterable[Tensor], alpha: Factors = 1.0, l1_ratio: float = 0.5, *, inplace: bool = False
) -> Tensor | list[Tensor]:
    r"""Return the proximal operator of `elastic_net`: a soft threshold, then a division.

    :math:`\arg\min_u \frac12 (u - w)^2 + \alpha (\rho |u| + \frac{1 - \rho}{2} u^2)
    = \operatorname{sign}(w) \max(|w| - \alpha \rho, 0) / (1 + \alpha (1 - \rho))`. With :math:`\rho = 0` it is the
    shrinkage of ridge regression, which makes no zeros.

    Args:
        weights: Real floating-point tensors of any shapes, or a single one. Each rank does its own part of a `DTensor`.
        alpha: :math:`\alpha \ge 0` for all weights, or one for each: a number, or a tensor that broadcasts to the
            weight (for a `DTensor`, to its local part). Entries of tensors are not checked.
        l1_ratio: Share :math:`\rho` of the 1-norm, in [0, 1].
        inplace: Whether to change `weights` themselves.

    Returns:
        A list of the results, in the shapes of `weights`, or a tensor for a tensor; without gradient.

    Raises:
        TypeError: If a weight is complex or not a tensor of floating-point numbers, a factor is not a number, or
            `inplace` is not a bool.
        ValueError: If `alpha` is negative or infinite in the precision of its weight, the numbers of factors and
            weights differ, or `l1_ratio` is out of range.

    Example:
        >>> elastic_net_prox([torch.tensor([3.0, -1.0, 0.5])], 2.0, 0.5)
        [tensor([1., 0., 0.])]

    Reference:
        Zou & Hastie, Regularization and Variable Selection via the Elastic Net, 2005,
        doi:10.1111/j.1467-9868.2005.00503.x; Parikh & Boyd, Proximal Algorithms, 2014, doi:10.1561/2400000003,
        section 6.5.3.

    """
    l1_ratio = _checks.in_range("l1_ratio", l1_ratio, 0, 1)
    results = outputs(weights, inplace=inplace)
    alphas = factors("alpha", alpha, results)
    parts = local_parts(results)
    if l1_ratio:
        _soften_(parts, [alpha * l1_ratio for alpha in alphas])
    if l1_ratio < 1 and parts:
        divisors = [alpha * (1 - l1_ratio) for alpha in alphas]
        divisors = [divisor.add_(1) if isinstance(divisor, Tensor) else divisor + 1 for divisor in divisors]
        torch._foreach_div_(parts, alike(divisors))
    return results[0] if isinstance(weights, Tensor) else results


@torch.no_grad()
def vanishing_factors(
    weights: list[Tensor], step_sizes: Sequence[NumberOrTensor], l1_ratio: float = 1.0
) -> list[Tensor]:
    """Return the least factor on `step_sizes` with which `elastic_net_prox` makes each entry zero."""
    return [part.abs() / (l1_ratio * size) for part, size in zip(local_parts(weights), step_sizes, strict=True)]


def _soften_(weights: list[Tensor], thresholds: list[NumberOrTensor]) -> None:
    """Subtract from each entry its part within the threshold: exact, because w - w is +0.0, also for -0.0."""
    if not weights:
        return
    upper = alike(thresholds)
    if weights[0].device.type != "cpu":
        inner: Any = torch._foreach_clamp_min(weights, [-threshold for threshold in upper])
        torch._foreach_clamp_max_(inner, upper)
    else:
        # On a CPU, foreach kernels are loops anyway. This takes one pass instead of two, into warm memory.
        inner = [_clamp(weight, threshold) for weight, threshold in zip(weights, upper, strict=True)]
    torch._foreach_sub_(weights, inner)


def _clamp(weight: Tensor, threshold: NumberOrTensor) -> Tensor:
    if not isinstance(threshold, Tensor):
        return torch.clamp(weight, -threshold, threshold)
    lower = -threshold
    is_like_weight = lower.shape == weight.shape and lower.dtype == weight.dtype
    return torch.clamp(weight, lower, threshold, out=lower if is_like_weight else None)


def outputs(weights: Tensor | Iterable[Tensor], *, inplace: bool) -> list[Tensor]:
    """Return the tensors to change in place: `weights` themselves, or copies."""
    tensors = real_weights(weights)
    return tensors if _checks.boolean("inplace", inplace) else [tensor.detach().clone() for tensor in tensors]


def factors(name: str, values: Factors, weights: Sequence[Tensor]) -> list[NumberOrTensor]:
    """Return one factor for each weight, checked as far as this needs no tensor's value."""
    each = list(values) if _checks.is_list(values) else [values] * len(weights)
    if len(each) != len(weights):
        msg = f"`{name}` must be one value, or one for each of {len(weights)} weights, got {len(each)}."
        raise ValueError(msg)
    return [_factor(name, value, weight) for value, weight in zip(each, weights, strict=True)]


def _factor(name: str, value: object, weight: Tensor) -> NumberOrTensor:
    if not isinstance(value, Tensor):
        number = _checks.non_negative(name, value)
        check_fits(name, number, [weight])
        return number
    if value.is_complex() or value.dtype == torch.bool:
        msg = f"`{name}` must be real numbers, got a tensor of {value.dtype}."
        raise TypeError(msg)
    part = local_part(value)
    # The negative of an unsigned integer would wrap around.
    return part if part.is_floating_point() else part.to(weight.dtype)
