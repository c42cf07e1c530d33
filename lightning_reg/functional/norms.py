"""Norms of many weights taken as one long vector."""

from collections.abc import Iterable

from torch import Tensor

from lightning_reg.functional._elementwise import elementwise_penalty


def l1_norm(weights: Iterable[Tensor]) -> Tensor:
    r"""Return the 1-norm of all weights together, :math:`\sum |w|`.

    As a penalty it is the negative logarithm of a Laplace prior: it selects features. Its gradient is
    :math:`\operatorname{sign}(w)`, with the subgradient 0 at 0. Exact up to rounding; sums run in float32 at least.

    Args:
        weights: Floating-point or complex tensors of any shapes; `DTensor`s count once over all ranks (a collective
            call). None at all, or empty ones, give 0.

    Returns:
        The norm, shape (), differentiable.

    Example:
        >>> import torch
        >>> l1_norm([torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])])
        tensor(6.)

    Reference:
        Tibshirani, Regression Shrinkage and Selection via the Lasso, 1996, doi:10.1111/j.2517-6161.1996.tb02080.x.

    """
    return elementwise_penalty(weights, l1=1.0)


def squared_l2_norm(weights: Iterable[Tensor]) -> Tensor:
    r"""Return the squared 2-norm of all weights together, :math:`\sum w^2`.

    For one matrix this is the squared Frobenius norm. As a penalty it is the negative logarithm of a Gaussian prior: it
    shrinks without zeros. Its gradient is :math:`2 w`. Exact up to rounding; sums run in float32 at least.

    Args:
        weights: Floating-point or complex tensors of any shapes; `DTensor`s count once over all ranks (a collective
            call). None at all, or empty ones, give 0.

    Returns:
        The squared norm, shape (), differentiable.

    Example:
        >>> import torch
        >>> squared_l2_norm([torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])])
        tensor(14.)

    Reference:
        Hoerl & Kennard, Ridge Regression, 1970, doi:10.1080/00401706.1970.10488634.

    """
    return elementwise_penalty(weights, l2=1.0)
