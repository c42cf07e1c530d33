"""Group lasso: whole units of a layer go to zero together."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.penalties.counts import check_dim
from lightning_reg.functional.penalties.group_sums import group_entries, group_sums, other_dims
from lightning_reg.functional.tensors.chunks import chunk_size, chunks
from lightning_reg.functional.tensors.shards import local_part, local_parts, whole
from lightning_reg.functional.tensors.weights import as_weights, check_fits

__all__ = ["group_lasso"]


def group_lasso(weights: Tensor | Iterable[Tensor], strength: float = 1.0, *, dim: int = 0) -> Tensor:
    r"""Return the group lasso of all weights, :math:`\lambda \sum_g \sqrt{n_g}\, \|w_g\|_2`.

    A group is the slice at one index along `dim`, with :math:`n_g` entries. With `dim=0` it holds the weights into one
    output unit of a linear layer, or one filter of a convolution; with `dim=1`, the weights out of one input unit or
    channel. (In transposed convolutions the two dimensions are swapped.) The gradient is
    :math:`\lambda \sqrt{n_g}\, w_g / \|w_g\|_2`, and 0 for a group of zeros. Exact up to rounding; sums run in float32
    at least.

    Args:
        weights: Floating-point or complex tensors with a dimension `dim`, or a single one. DTensors are gathered (a
            collective call) and count once. No weights, or empty ones, give 0.
        strength: :math:`\lambda`, >= 0.
        dim: The dimension along which the groups lie.

    Returns:
        The penalty, shape (), differentiable.

    Raises:
        TypeError: If `weights` holds anything but such tensors, `strength` is not a number or `dim` not an int.
        ValueError: If `strength` is out of range or infinite in the precision of a weight, or a weight has no dimension
            `dim`.

    Example:
        >>> import torch
        >>> group_lasso([torch.tensor([[3.0, 4.0], [0.0, 0.0]])]) / 2**0.5
        tensor(5.)

    Reference:
        Yuan & Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006,
        doi:10.1111/j.1467-9868.2005.00532.x.

    """
    strength = _checks.non_negative("strength", strength)
    weights = as_weights(weights)
    check_dim(weights, _checks.integer("dim", dim))
    check_fits("strength", strength, weights)
    terms = []
    for weight in map(whole, weights):
        others = other_dims(weight, dim)
        dtype = None if weight.dtype.itemsize > 2 else torch.float32  # noqa: PLR2004  # bytes: half precision
        norms = torch.linalg.vector_norm(weight, 2, others, dtype=dtype) if others else weight.abs()
        terms.append(strength * group_entries(weight, dim) ** 0.5 * norms.sum())
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())


@torch.no_grad()
def add_group_gradient_(grads: list[Tensor], weights: list[Tensor], factor: float, *, dim: int) -> None:
    """Add the gradient of `group_lasso` at strength `factor` to `grads` in place; for DTensors to the local parts."""
    if not weights:
        return
    check_dim(weights, dim)
    for some_grads, some_weights in chunks(grads, weights, size=chunk_size(weights), split=False):
        for grad, weight, squares in zip(
            local_parts(some_grads), some_weights, group_sums(some_weights, local_parts(some_weights), dim), strict=True
        ):
            scale = factor * group_entries(weight, dim) ** 0.5 / squares.sqrt()
            grad.add_(local_part(weight) * scale.masked_fill_(squares == 0, 0.0))
