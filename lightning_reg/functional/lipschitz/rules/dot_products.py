r"""Rules of products of two values that both depend on the input, where it is known how large they get.

A sum of products changes by

.. math:: \|\delta A\, B\|_F + \|A\, \delta B\|_F \le \|B\| \|\delta A\|_F + \|A\| \|\delta B\|_F,

and the norm of a matrix of n rows, none longer than R, is :math:`\sqrt n R` at most. Where A is the softmax of scores,
as in attention, there is a smaller bound. Let the rows of queries, keys and values be no longer than :math:`R_q, R_k,
R_v`, and s be the scale. Scores :math:`s\, q_i^T k_j` change by :math:`a_i + b_j` at most, with :math:`a_i = s R_k
\|\delta q_i\|` and :math:`b_j = s R_q \|\delta k_j\|`. A row of the output is a mean by the probabilities :math:`p_i`;
it changes by the covariance of the values and of the changes of the scores, and by the mean of the changes of values:

.. math:: \delta o_i = \mathrm{Cov}_{p_i}(v_j, \delta s_{ij}) + \sum_j p_{ij} \delta v_j.

The first is :math:`R_v` times the deviation of the scores' changes at most, hence :math:`R_v (a_i + \sqrt{\sum_j p_{ij}
b_j^2})`; the second squared :math:`\sum_j p_{ij} \|\delta v_j\|^2` at most. No column of n rows of probabilities has
a sum above n. Hence, over all rows,

.. math:: \|\delta O\| \le s R_v (R_k \|\delta Q\| + \sqrt n R_q \|\delta K\|) + \sqrt n \|\delta V\|.

Constants added to scores, such as masks, change nothing in that: they set some probabilities to 0. Several heads and
samples are independent, and each term adds up over them by its squares. Probabilities change as `values` would that are
the unit vectors, which are no longer than 1: by :math:`s (R_k \|\delta Q\| + \sqrt n R_q \|\delta K\|)`.

Reference: Kim, Papamakarios & Mnih, The Lipschitz Constant of Self-Attention, 2021, arXiv:2006.04710, for why there is
none without a bound of the rows; Castin, Ablin & Peyré, How Smooth Is Attention?, 2024, arXiv:2312.14820, for balls.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.rounding import UPWARDS, precise, smaller, times
from lightning_reg.functional.lipschitz.value import (
    Bound,
    Extent,
    NoBoundError,
    Scores,
    Traced,
    constant,
    largest,
)

UNBOUNDED_ROWS = (
    "dot-product attention has no Lipschitz constant (Kim et al. 2021, arXiv:2006.04710), unless its rows are bounded,"
    " as after LayerNorm or RMSNorm"
)


def known(value: Any, dim: int = -1) -> Traced:
    """Return what is known of a tensor, also of a constant, whose vectors lie along `dim`."""
    if isinstance(value, Traced):
        return value
    tensor = constant(value)
    if tensor.layout != torch.strided:
        return Traced(tensor, Bound(0.0))
    dim = max(dim, -tensor.ndim)
    rows = largest(torch.linalg.vector_norm(precise(tensor), dim=dim)) if tensor.ndim else largest(tensor)
    return Traced(tensor, Bound(0.0, extent=Extent(largest(tensor), rows, dim)))


def dot_products(batches: float, first: Traced, second: Traced) -> Bound:
    """Return the bound of a matrix product of two values; of so many of them, if they have more dimensions.

    Raises:
        NoBoundError: If it is not known how large they get.

    """
    rows, columns, count = _sizes(first, second)
    copies = _copies(batches, first, rows * count), _copies(batches, second, count * columns)
    changes = times(first.bound.value, copies[0]), times(second.bound.value, copies[1])
    # A matrix is no longer than the root of its number of rows times the longest; of columns, too.
    norms = [math.sqrt(rows) * first.radius(-1), math.sqrt(columns) * _columns(second)]
    if first.value.ndim > 1:
        norms[0] = smaller(norms[0], math.sqrt(count) * first.radius(-2))
    if second.value.ndim > 1:
        norms[1] = smaller(norms[1], math.sqrt(count) * second.radius(-1))
    value = times(changes[0], norms[1]) + times(changes[1], norms[0])
    scores = first.bound.extent.scores
    if scores is not None and scores.are_shares and second.value.ndim > 1:
        weights = Scores(scores.by_row * copies[0], scores.by_column * copies[0])
        value = smaller(value, attended(weights, rows, second.radius(-1), changes[1]))
    if math.isinf(value) and math.inf in norms:
        raise NoBoundError(UNBOUNDED_ROWS)
    return Bound(value * UPWARDS)


def number_of_products(output: Tensor, first: Traced, second: Traced) -> float:
    """Return how many matrices there are in their product."""
    rows, columns, _ = _sizes(first, second)
    return output.numel() / max(rows * columns, 1)


def products_extent(batches: float, first: Traced, second: Traced) -> Extent:
    """Return how large a matrix product of two values gets, and its scores."""
    rows, columns, count = _sizes(first, second)
    lengths = first.radius(-1), _columns(second)
    scores = first.bound.extent.scores
    if scores is not None and scores.are_shares:  # means
        return Extent(second.bound.extent.entries, second.radius(-1)) if second.value.ndim > 1 else Extent(lengths[1])
    by_row = times(first.bound.value, lengths[1]) * _copies(batches, first, rows * count)
    by_column = times(second.bound.value, lengths[0]) * _copies(batches, second, count * columns)
    is_matrix = min(first.value.ndim, second.value.ndim) > 1 and math.isfinite(by_row + by_column)
    return Extent(times(*lengths), scores=Scores(by_row, by_column) if is_matrix else None)


def _sizes(first: Traced, second: Traced) -> tuple[int, int, int]:
    """Return the numbers of rows and columns of a product, and of the terms of a sum."""
    rows = first.value.shape[-2] if first.value.ndim > 1 else 1
    columns = second.value.shape[-1] if second.value.ndim > 1 else 1
    return rows, columns, first.value.shape[-1]


def _columns(value: Traced) -> float:
    """Return the largest length of a column."""
    return value.radius(-min(value.value.ndim, 2))


def _copies(batches: float, value: Traced, size: int) -> float:
    """Return the root of how often each entry is there, if batches of matrices of this size broadcast."""
    return math.sqrt(batches * size / max(value.value.numel(), 1))


def scores_of(batches: float, query: Traced, key: Traced, scale: float) -> Scores:
    """Return what is known of scores: queries of shape (..., n, d), keys of shape (..., m, d)."""
    (queries, size), keys = query.value.shape[-2:], key.value.shape[-2]
    return Scores(
        times(query.bound.value, key.radius()) * abs(scale) * _copies(batches, query, queries * size),
        times(key.bound.value, query.radius()) * abs(scale) * _copies(batches, key, keys * size),
    )


def attended(scores: Scores, rows: int, radius: float, values: float) -> float:
    """Return the bound of means of values by the softmax of scores.

    Args:
        scores: What is known of them.
        rows: n, of one matrix of probabilities.
        radius: The largest length of a row of values.
        values: The bound of the values.

    """
    return times(mean_deviation(scores, rows), radius) + math.sqrt(rows) * values


def mean_deviation(scores: Scores, rows: int) -> float:
    """Return the bound of the deviations of the scores' changes; it is one of the probabilities, too."""
    return scores.by_row + times(scores.by_column, math.sqrt(rows))
