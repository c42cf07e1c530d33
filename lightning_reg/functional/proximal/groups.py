"""The proximal operator of the group lasso: a closed form, or Newton's method if thresholds differ in a group."""

from collections.abc import Callable, Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional.penalties.counts import check_dim
from lightning_reg.functional.penalties.group_sums import group_blocks, group_entries, group_sum, group_sums
from lightning_reg.functional.proximal.elementwise import Factors, factors, outputs
from lightning_reg.functional.tensors.chunks import NumberOrTensor, chunk_size, chunks
from lightning_reg.functional.tensors.shards import local_part, local_parts, shard_groups, sum_over_split_groups

__all__ = ["group_soft_threshold"]


@overload
def group_soft_threshold(weights: Tensor, threshold: Factors, *, dim: int = 0, inplace: bool = False) -> Tensor: ...
@overload
def group_soft_threshold(
    weights: Iterable[Tensor], threshold: Factors, *, dim: int = 0, inplace: bool = False
) -> list[Tensor]: ...
@torch.no_grad()
def group_soft_threshold(
    weights: Tensor | Iterable[Tensor], threshold: Factors, *, dim: int = 0, inplace: bool = False
) -> Tensor | list[Tensor]:
    r"""Return the proximal operator of `group_lasso`: each group shrinks as a whole, or becomes exactly zero.

    With one threshold :math:`\tau` for a weight, and :math:`c = \tau \sqrt{n_g}`, the closed form is
    :math:`w_g \max(1 - c / \|w_g\|_2, 0)`. With a threshold for each entry, as with the step sizes of Adam, it is
    :math:`\arg\min_u \sum_i (u_i - w_i)^2 / (2 \tau_i) + \sqrt{n_g}\, \|u\|_2`: zero if
    :math:`\|w_g / \tau_g\|_2 \le \sqrt{n_g}`, else :math:`u_i = w_i\, r / (r + \tau_i \sqrt{n_g})`, where the norm
    :math:`r` of the result solves one equation per group, by Newton's method from below (monotone, to rounding).
    No entry becomes -0.0.

    Args:
        weights: Real floating-point tensors with a dimension `dim`, or a single one. Of DTensors each rank does its
            own part; where groups are spread over ranks, this is a collective call.
        threshold: :math:`\tau \ge 0` for all weights, or one for each: a number, a tensor of one entry, or a tensor
            of the shape of the weight (for a `DTensor`, of its local part). Entries of tensors are not checked.
        dim: The dimension along which the groups lie, see `group_lasso`.
        inplace: Whether to change `weights` themselves.

    Returns:
        A list of the results, in the shapes of `weights`, or a tensor for a tensor; without gradient.

    Raises:
        TypeError: If a weight is complex or not a tensor of floating-point numbers, a threshold is not a number, `dim`
            is not an int, or `inplace` is not a bool.
        ValueError: If a threshold is negative or infinite in the precision of its weight, the numbers of thresholds and
            weights differ, or a weight has no dimension `dim`.

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
    check_dim(results, _checks.integer("dim", dim))
    index = 0
    for (some,) in chunks(results, size=chunk_size(results), split=False) if results else ():
        _shrink_groups_(some, thresholds[index : index + len(some)], dim)
        index += len(some)
    return results[0] if isinstance(weights, Tensor) else results


@torch.no_grad()
def group_thresholds(weights: list[Tensor], step_sizes: Sequence[NumberOrTensor], *, dim: int) -> list[Tensor]:
    """Return for each group the least factor on `step_sizes` with which `group_soft_threshold` makes it zero."""
    parts = local_parts(weights)
    sizes = [local_part(size) if isinstance(size, Tensor) else size for size in step_sizes]
    # A single step size for all entries is taken out of the sum, because it may be 0.
    varied = [part if _is_scalar(size) else part / size for part, size in zip(parts, sizes, strict=True)]
    return [
        squares.sqrt() / (group_entries(weight, dim) ** 0.5 * (size if _is_scalar(size) else 1))
        for weight, size, squares in zip(weights, sizes, group_sums(weights, varied, dim), strict=True)
    ]


# Newton's steps until float32 and float64 are exact to rounding, also in groups near the edge of zero whose thresholds
# differ by many orders of magnitude. A check whether fewer are enough would wait for the device, except on a CPU.
_NEWTON_STEPS, _NEWTON_STEPS_IN_DOUBLE = 7, 10


def _shrink_groups_(weights: Sequence[Tensor], thresholds: Sequence[NumberOrTensor], dim: int) -> None:
    """Shrink each group of each weight, in place; a collective call for split groups.

    Args:
        weights: Plain tensors and DTensors.
        thresholds: For each weight a number, a tensor of one entry, or a tensor with one threshold for each entry of
            this rank's part; without the root of the number of entries in a group.
        dim: The dimension along which groups lie.

    """
    uniform: list[tuple[Tensor, NumberOrTensor]] = []
    split: list[tuple[Tensor, NumberOrTensor]] = []
    for weight, threshold in zip(weights, thresholds, strict=True):
        if _is_scalar(threshold):
            uniform.append((weight, threshold * group_entries(weight, dim) ** 0.5))
        elif shard_groups(weight, lambda sharded, own=dim % weight.ndim: sharded != own):  # type: ignore[misc]
            split.append((weight, threshold))
        else:
            _shrink_blocks_(weight, torch.as_tensor(threshold), dim)
    _shrink_uniform_([weight for weight, _ in uniform], [threshold for _, threshold in uniform], dim)
    if split:
        _shrink_varied_([weight for weight, _ in split], [threshold for _, threshold in split], dim)


def _is_scalar(value: NumberOrTensor) -> bool:
    """Tell whether there is one value for all entries."""
    return not isinstance(value, Tensor) or value.ndim == 0


def _shrink_uniform_(weights: list[Tensor], thresholds: list[NumberOrTensor], dim: int) -> None:
    parts = local_parts(weights)
    for part, threshold, squares in zip(parts, thresholds, group_sums(weights, parts, dim), strict=True):
        # At a threshold of 0 a group stays as it is, even if its sum of squares underflows to 0.
        norms = squares.sqrt().clamp(min=torch.finfo(squares.dtype).tiny)
        # The share to subtract: if it is 1, w - w is +0.0, also for -0.0.
        part.addcmul_(part, torch.where(norms <= threshold, 1.0, threshold / norms), value=-1)


def _shrink_blocks_(weight: Tensor, thresholds: Tensor, dim: int) -> None:
    """Shrink groups that lie on this rank alone, some at a time."""
    (part,) = local_parts([weight])
    if not part.numel():
        return
    for block, bounds in group_blocks(part, thresholds.expand(part.shape), dim=dim):
        _shrink_varied_([block], [bounds], dim, looks=part.device.type == "cpu")


def _shrink_varied_(weights: list[Tensor], thresholds: list[NumberOrTensor], dim: int, *, looks: bool = False) -> None:
    r"""Solve :math:`\sum w^2 / (r + d)^2 = 1` for the norm r of each group with thresholds d, then shrink.

    Newton's method on the root of the sum's reciprocal, which is concave in r: from the left it never overshoots. It
    starts at the bound :math:`\|w\| - \bar d`, from Jensen's inequality, with the mean of d weighted by w^2.

    Args:
        weights: The weights; all take the same steps, with one collective call in each.
        thresholds: Thresholds of the entries of this rank's parts, without the root of the number of entries in a
            group.
        dim: The dimension along which groups lie.
        looks: Whether to end as soon as all norms are exact. If not, all steps are taken.

    """
    parts = local_parts(weights)
    dtypes = [torch.promote_types(part.dtype, torch.float32) for part in parts]
    wide = [part.to(dtype) for part, dtype in zip(parts, dtypes, strict=True)]
    shifts = [
        torch.as_tensor(threshold).to(dtype) * group_entries(weight, dim) ** 0.5
        for weight, threshold, dtype in zip(weights, thresholds, dtypes, strict=True)
    ]

    def sums(terms: Callable[[int], tuple[Tensor, ...]]) -> list[Tensor]:
        """Return the sums over each group of the terms of each weight, side by side along a new first dimension."""
        own = [torch.stack([group_sum(term, weight, dim) for term in terms(i)]) for i, weight in enumerate(weights)]
        return sum_over_split_groups(own, weights, dim)

    def moments(index: int) -> tuple[Tensor, ...]:
        squares = wide[index].square()
        # A threshold of 0 leaves its entry alone; 0/0 is an entry that is zero.
        return squares, squares * shifts[index], (wide[index] / shifts[index]).nan_to_num_(0.0, torch.inf).square_()

    def newton(index: int) -> tuple[Tensor, ...]:
        reciprocals = (roots[index] + shifts[index]).reciprocal_()
        seconds = (wide[index] * reciprocals).square_()
        return seconds, reciprocals.mul_(seconds)

    roots, is_zero = _start(sums(moments))
    for _ in range(_NEWTON_STEPS_IN_DOUBLE if torch.float64 in dtypes else _NEWTON_STEPS):
        # A step is NaN where squares leave the range of the type. The root of such a group stays as it is.
        steps = [
            ((seconds.pow(1.5) - seconds) / thirds).nan_to_num_(0.0, torch.inf).clamp_(min=0)
            for seconds, thirds in sums(newton)
        ]
        torch._foreach_add_(roots, steps)
        if looks and _are_small(steps, roots):
            break
    for part, root, zero, shift in zip(parts, roots, is_zero, shifts, strict=True):
        # This is shift / (root + shift), also for an infinite shift.
        share = (root.masked_fill_(zero, 1.0) / shift).add_(1).reciprocal_()
        # A group that vanishes is multiplied by 0. The difference turns -0.0 into +0.0.
        part.mul_(zero.logical_not()).addcmul_(part, share, value=-1)


def _are_small(steps: list[Tensor], roots: list[Tensor]) -> bool:
    r"""Tell whether Newton's steps were so small that no further one would change anything; of tensors on the CPU.

    For :math:`\sum w^2 / (r + d)^2`, a step that begins at a distance of :math:`\epsilon r` ends nearer than
    :math:`1.5\, \epsilon^2 r`: the weighted variance of :math:`1 / (r + d)` is at most its mean over r.
    """
    tolerances = [0.5 * torch.finfo(root.dtype).eps ** 0.5 for root in roots]
    large = [(step > tolerance * root).any() for step, tolerance, root in zip(steps, tolerances, roots, strict=True)]
    # Python's own numbers come from memory, where nothing waits.
    return not any(one.tolist() for one in large)


def _start(moments: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return lower bounds of the norms, and which groups become zero."""
    roots, is_zero = [], []
    for squares, weighted, scaled in moments:
        norms = squares.sqrt()
        is_zero.append(scaled <= 1)
        # Not from 0, where entries without a threshold would give inf. This exceeds the bound by rounding only.
        limits = torch.finfo(norms.dtype)
        root = torch.maximum(norms - weighted / squares, norms * limits.eps)
        # If the sum of squares underflows or overflows, there is no bound. The norm is near 0, or far above thresholds.
        root = torch.where(squares == 0, limits.tiny, torch.where(squares.isinf(), torch.inf, root))
        roots.append(root.masked_fill_(is_zero[-1], 1.0))  # any number that prevents NaN: the result is 0 there
    return roots, is_zero
