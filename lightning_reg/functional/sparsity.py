"""Sparsity: the share of weights, or of whole groups of weights, that are zero."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_reg import _checks
from lightning_reg.functional._per_weight import zero_counts


def sparsity(weights: Iterable[Tensor], *, threshold: float = 0.0, dim: int | None = None) -> Tensor:
    r"""Return the share of all entries with :math:`|w| \le t`, or of all slices that consist of such entries alone.

    The zero slices are those that can be removed from a network: with `dim=0` its dead output units or filters, with
    `dim=1` its unused input units or channels. Exact: entries are counted, and a NaN is no zero.

    Args:
        weights: Floating-point or complex tensors of any shapes; `DTensor`s count once over all ranks (a collective
            call).
        threshold: :math:`t`, >= 0; 0 counts exact zeros.
        dim: If given, count the slices along this dimension instead of the entries.

    Returns:
        The share in [0, 1], shape (), without gradient; NaN if there is nothing to count.

    Raises:
        TypeError: If `threshold` is no number or `dim` no int.
        ValueError: If `threshold` is negative, or a weight has no dimension `dim`.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.0, 0.0], [0.0, 3.0], [1.0, 2.0], [4.0, 5.0]])
        >>> sparsity([weight])
        tensor(0.3750)
        >>> sparsity([weight], dim=0)
        tensor(0.2500)

    """
    weights, threshold = list(weights), _checks.non_negative("threshold", threshold)
    if not weights:
        return torch.full((), torch.nan)
    zeros = zero_counts(weights, threshold, check_dim(weights, dim))
    return zeros.sum() / sum(entry_counts(weights, dim))


def entry_counts(weights: Iterable[Tensor], dim: int | None) -> list[int]:
    """Return how many entries, or slices along `dim`, each weight has."""
    return [weight.numel() if dim is None else weight.shape[dim] for weight in weights]


def check_dim(weights: Iterable[Tensor], dim: int | None) -> int | None:
    """Return `dim` if every weight has that dimension."""
    _checks.dimension("dim", dim)
    for weight in weights:
        if dim is not None and not -weight.ndim <= dim < weight.ndim:
            msg = (
                f"`dim` must be a dimension of every weight, got {dim} for one of shape {tuple(weight.shape)}."
                " Select weights that have it."
            )
            raise ValueError(msg)
    return dim
