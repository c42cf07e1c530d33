"""The elastic net."""

from collections.abc import Iterable

from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional._elementwise import elementwise_penalty


def elastic_net(weights: Iterable[Tensor], alpha: float = 1.0, l1_ratio: float = 0.5) -> Tensor:
    r"""Return the elastic net of all weights, :math:`\alpha (\rho \sum |w| + \frac{1 - \rho}{2} \sum w^2)`.

    The same `alpha` and `l1_ratio` as in `sklearn.linear_model.ElasticNet`. Its gradient is
    :math:`\alpha (\rho \operatorname{sign}(w) + (1 - \rho) w)`, with sign(0) = 0.

    Args:
        weights: Floating-point or complex tensors of any shapes; `DTensor`s count once over all ranks (a collective
            call). None at all, or empty ones, give 0.
        alpha: Strength :math:`\alpha` of the whole term, >= 0.
        l1_ratio: Share :math:`\rho` of the 1-norm, in [0, 1].

    Returns:
        The penalty, shape (), differentiable.

    Raises:
        TypeError: If `alpha` or `l1_ratio` is no number.
        ValueError: If `alpha` or `l1_ratio` is out of range.

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
    return elementwise_penalty(weights, l1=alpha * l1_ratio, l2=alpha * (1 - l1_ratio) / 2)
