"""Norms of many weights as one long vector: the 1-norm, the squared 2-norm, the elastic net."""

from collections.abc import Iterable

from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.penalties.elementwise import elementwise_penalty
from lightning_reg.functional.tensors.weights import as_weights, check_fits

__all__ = ["elastic_net", "l1_norm", "squared_l2_norm"]


def l1_norm(weights: Tensor | Iterable[Tensor]) -> Tensor:
    r"""Return the 1-norm of all weights together, :math:`\sum |w|`.

    As a penalty it is the negative logarithm of a Laplace prior: it selects features. Its gradient is
    :math:`\operatorname{sign}(w)`, with the subgradient 0 at 0. Exact up to rounding; sums run in float32 at least.

    Args:
        weights: Floating-point or complex tensors of any shapes, or a single one; DTensors count once over all ranks
            (a collective call). No weights, or empty ones, give 0.

    Returns:
        The norm, shape (), differentiable.

    Raises:
        TypeError: If `weights` holds anything but such tensors.

    Example:
        >>> import torch
        >>> l1_norm([torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])])
        tensor(6.)

    Reference:
        Tibshirani, Regression Shrinkage and Selection via the Lasso, 1996, doi:10.1111/j.2517-6161.1996.tb02080.x.

    """
    return elementwise_penalty(as_weights(weights), l1=1.0)


def squared_l2_norm(weights: Tensor | Iterable[Tensor]) -> Tensor:
    r"""Return the squared 2-norm of all weights together, :math:`\sum w^2`.

    For one matrix this is the squared Frobenius norm. As a penalty it is the negative logarithm of a Gaussian prior: it
    shrinks without zeros. Its gradient is :math:`2 w`. Exact up to rounding; sums run in float32 at least.

    Args:
        weights: Floating-point or complex tensors of any shapes, or a single one; DTensors count once over all ranks
            (a collective call). No weights, or empty ones, give 0.

    Returns:
        The squared norm, shape (), differentiable.

    Raises:
        TypeError: If `weights` holds anything but such tensors.

    Example:
        >>> import torch
        >>> squared_l2_norm([torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])])
        tensor(14.)

    Reference:
        Hoerl & Kennard, Ridge Regression, 1970, doi:10.1080/00401706.1970.10488634.

    """
    return elementwise_penalty(as_weights(weights), l2=1.0)


def elastic_net(weights: Tensor | Iterable[Tensor], alpha: float = 1.0, l1_ratio: float = 0.5) -> Tensor:
    r"""Return the elastic net of all weights, :math:`\alpha (\rho \sum |w| + \frac{1 - \rho}{2} \sum w^2)`.

    The same `alpha` and `l1_ratio` as in `sklearn.linear_model.ElasticNet`. Its gradient is
    :math:`\alpha (\rho \operatorname{sign}(w) + (1 - \rho) w)`, with sign(0) = 0.

    Args:
        weights: Floating-point or complex tensors of any shapes, or a single one; DTensors count once over all ranks
            (a collective call). No weights, or empty ones, give 0.
        alpha: Strength :math:`\alpha` of the whole term, >= 0.
        l1_ratio: Share :math:`\rho` of the 1-norm, in [0, 1].

    Returns:
        The penalty, shape (), differentiable.

    Raises:
        TypeError: If `weights` holds anything but such tensors, or `alpha` or `l1_ratio` is not a number.
        ValueError: If `alpha` or `l1_ratio` is out of range, or `alpha` infinite in the precision of a weight.

    Example:
        >>> import torch
        >>> elastic_net([torch.tensor([1.0, -2.0])], alpha=0.1, l1_ratio=0.5)
        tensor(0.2750)

    Reference:
        Zou & Hastie, Regularization and Variable Selection via the Elastic Net, 2005,
        doi:10.1111/j.1467-9868.2005.00503.x.

    """
    alpha = _checks.non_negative("alpha", alpha)
    l1_ratio = _checks.in_range("l1_ratio", l1_ratio, 0, 1)
    weights = as_weights(weights)
    check_fits("alpha", alpha, weights)
    return elementwise_penalty(weights, l1=alpha * l1_ratio, l2=alpha * (1 - l1_ratio) / 2)
