"""Group lasso: whole units of a layer go to zero together."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional._group_shrink import is_scalar, shrink_groups_
from lightning_reg.functional._group_sums import group_entries, group_sums, other_dims
from lightning_reg.functional._groups import group_size, groups
from lightning_reg.functional._shards import local_part, local_parts, whole
from lightning_reg.functional.proximal import Factor, factors, outputs
from lightning_reg.functional.sparsity import check_dim


def group_lasso(weights: Iterable[Tensor], strength: float = 1.0, *, dim: int = 0) -> Tensor:
    r"""Return the group lasso of all weights, :math:`\lambda \sum_g \sqrt{n_g}\, \|w_g\|_2`.

    A group is what one index along `dim` holds, with :math:`n_g` entries: for `dim=0` the weights into one output unit
    of a linear layer, or one filter of a convolution; for `dim=1` those out of one input unit or channel. (Transposed
    convolutions have it the other way round.) The gradient is :math:`\lambda \sqrt{n_g}\, w_g / \|w_g\|_2`, and 0 at a
    group that is zero. Exact up to rounding; sums run in float32 at least.

    Args:
        weights: Floating-point or complex tensors with a dimension `dim`. `DTensor`s are gathered (a collective call)
            and count once. None at all, or empty ones, give 0.
        strength: :math:`\lambda`, >= 0.
        dim: The dimension along which the groups lie.

    Returns:
        The penalty, shape (), differentiable.

    Raises:
        TypeError: If `strength` is no number or `dim` no int.
        ValueError: If `strength` is out of range, or a weight has no dimension `dim`.

    Example:
        >>> import torch
        >>> group_lasso([torch.tensor([[3.0, 4.0], [0.0, 0.0]])]) / 2**0.5
        tensor(5.)

    Reference:
        Yuan & Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006,
        doi:10.1111/j.1467-9868.2005.00532.x.

    """
    strength = _checks.non_negative("strength", strength)
    weights = list(weights)
    check_dim(weights, dim)
    terms = []
    for weight in map(whole, weights):
        others = other_dims(weight, dim)
        dtype = None if weight.dtype.itemsize > 2 else torch.float32  # noqa: PLR2004  # bytes: half precision
        norms = torch.linalg.vector_norm(weight, 2, others, dtype=dtype) if others else weight.abs()
        terms.append(strength * group_entries(weight, dim) ** 0.5 * norms.sum())
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())


@torch.no_grad()
def add_group_gradient_(grads: list[Tensor], weights: list[Tensor], factor: float, *, dim: int) -> None:
    """Add the gradient of `group_lasso` at strength `factor` to `grads` in place; of `DTensor`s to the local parts."""
    if not weights:
        return
    check_dim(weights, dim)
    for some_grads, some_weights in groups(grads, weights, size=group_size(weights), split=False):
        for grad, weight, squares in zip(
            local_parts(some_grads), some_weights, group_sums(some_weights, local_parts(some_weights), dim), strict=True
        ):
            scale = factor * group_entries(weight, dim) ** 0.5 / squares.sqrt()
            grad.add_(local_part(weight) * scale.masked_fill_(squares == 0, 0.0))


@torch.no_grad()
def group_soft_threshold(
    weights: Iterable[Tensor], threshold: Factor | Sequence[Factor], *, dim: int = 0, inplace: bool = False
) -> list[Tensor]:
    r"""Return the proximal operator of `group_lasso`: each group shrinks as a whole, or becomes exactly zero.

    With one threshold :math:`\tau` for a weight, and :math:`c = \tau \sqrt{n_g}`, the closed form is
    :math:`w_g \max(1 - c / \|w_g\|_2, 0)`. With a threshold for each entry, as the step sizes of Adam have it, it is
    :math:`\arg\min_u \sum_i (u_i - w_i)^2 / (2 \tau_i) + \sqrt{n_g}\, \|u\|_2`: zero if
    :math:`\|w_g / \tau_g\|_2 \le \sqrt{n_g}`, else :math:`u_i = w_i\, r / (r + \tau_i \sqrt{n_g})`, where the norm
    :math:`r` of the result solves one equation per group, by Newton's method from below (monotone, to rounding).
    No entry becomes -0.0.

    Args:
        weights: Real floating-point tensors with a dimension `dim`. Of `DTensor`s each rank does its own part; where
            groups are spread over ranks, this is a collective call.
        threshold: :math:`\tau \ge 0` for all weights, or one for each: a number, a tensor of one entry, or a tensor
            of the shape of the weight (for a `DTensor`, of its local part). Entries of tensors are not checked.
        dim: The dimension along which the groups lie, see `group_lasso`.
        inplace: Whether to change `weights` themselves.

    Returns:
        The results, in the shapes of `weights`, without gradient.

    Raises:
        TypeError: If a weight is complex or no tensor of floating-point numbers, a threshold no number, or `dim` no
            int.
        ValueError: If a threshold is negative, there are more or fewer than weights, or a weight has no dimension
            `dim`.

    Example:
        >>> import torch
        >>> group_soft_threshold([torch.tensor([[3.0, 4.0], [0.1, 0.1]])], 2**0.5)
        [tensor([[1.8000, 2.4000],
                [0.0000, 0.0000]])]

    Reference:
        Yuan & Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006,
        doi:10.1111/j.1467-9868.2005.00532.x; Parikh & Boyd, Proximal Algorithms, 2014, doi:10.1561/2400000003,
        section 6.5.4; for the metric: Becker & Fadili, A Quasi-Newton Proximal Splitting Method, 2012, arXiv:1206.1156.

    """
    results = outputs(weights, inplace=inplace)
    thresholds = factors("threshold", threshold, results)
    check_dim(results, dim)
    index = 0
    for (some,) in groups(results, size=group_size(results), split=False) if results else ():
        norms = [
            tau * group_entries(weight, dim) ** 0.5
            for weight, tau in zip(some, thresholds[index : index + len(some)], strict=True)
        ]
        index += len(some)
        shrink_groups_(some, norms, dim)
    return results


@torch.no_grad()
def group_thresholds(weights: list[Tensor], step_sizes: Sequence[Factor], *, dim: int) -> list[Tensor]:
    """Return for each group the least factor on `step_sizes` with which `group_soft_threshold` makes it zero."""
    parts = local_parts(weights)
    sizes = [local_part(size) if isinstance(size, Tensor) else size for size in step_sizes]
    # Of one entry, the size is taken out of the sum: it may be 0.
    varied = [part if is_scalar(size) else part / size for part, size in zip(parts, sizes, strict=True)]
    return [
        squares.sqrt() / (group_entries(weight, dim) ** 0.5 * (size if is_scalar(size) else 1))
        for weight, size, squares in zip(weights, sizes, group_sums(weights, varied, dim), strict=True)
    ]
