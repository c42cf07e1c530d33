r"""Bounds of products of two values that both depend on the input, if the sizes of both are bounded.

A sum of products changes by

.. math:: \|\delta A\, B\|_F + \|A\, \delta B\|_F \le \|B\| \|\delta A\|_F + \|A\| \|\delta B\|_F,

and a matrix of n rows of length at most R has a norm of at most :math:`\sqrt n R`.

If A is the softmax of scores, as in attention, a smaller bound holds. The lengths of the rows of queries, keys and
values are at most :math:`R_q`, :math:`R_k` and :math:`R_v`, and s is the scale. The score :math:`s\, q_i^T k_j`
changes by at most :math:`a_i + b_j`, with :math:`a_i = s R_k \|\delta q_i\|` and :math:`b_j = s R_q \|\delta k_j\|`.
A row of the output is the mean of the values, weighted by the probabilities :math:`p_i`. Its change has two terms, the
covariance of the values with the changes of the scores, and the mean of the changes of the values:

.. math:: \delta o_i = \mathrm{Cov}_{p_i}(v_j, \delta s_{ij}) + \sum_j p_{ij} \delta v_j.

The first term is at most :math:`R_v` times the standard deviation of the score changes, hence at most
:math:`R_v (a_i + \sqrt{\sum_j p_{ij} b_j^2})`. The square of the second term is at most
:math:`\sum_j p_{ij} \|\delta v_j\|^2`. Each column of n rows of probabilities sums to at most n. Hence, over all rows,

.. math:: \|\delta O\| \le s R_v (R_k \|\delta Q\| + \sqrt n R_q \|\delta K\|) + \sqrt n \|\delta V\|.

Constants added to scores, such as masks, do not change this bound. Heads and samples are independent. Each term
combines over them by the root of the sum of squares. The probabilities are the output for constant unit vectors as
values, which have length 1. So they change by at most :math:`s (R_k \|\delta Q\| + \sqrt n R_q \|\delta K\|)`.

Reference: Kim, Papamakarios & Mnih, The Lipschitz Constant of Self-Attention, 2021, arXiv:2006.04710 (there is none
unless the rows are bounded); Castin, Ablin & Peyré, How Smooth Is Attention?, 2024, arXiv:2312.14820 (in a ball).
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
    "a product of values that depend on the input, as in dot-product attention, has no Lipschitz constant"
    " unless its rows are bounded, for example by LayerNorm or RMSNorm (Kim et al. 2021, arXiv:2006.04710)"
)


def known(value: Any, dim: int = -1) -> Traced:
    """Return a value with its sizes. A constant gets the largest length of its vectors along `dim`."""
    if isinstance(value, Traced):
        return value
    tensor = constant(value)
    if tensor.layout != torch.strided:
        return Traced(tensor, Bound(0.0))
    dim = max(dim, -tensor.ndim)
    rows = largest(torch.linalg.vector_norm(precise(tensor), dim=dim)) if tensor.ndim else largest(tensor)
    return Traced(tensor, Bound(0.0, extent=Extent(largest(tensor), rows, dim)))


def dot_products(batches: float, first: Traced, second: Traced) -> Bound:
    """Return the bound of a matrix product of two values, or of `batches` products together.

    Raises:
        NoBoundError: If a size that the bound needs has no known bound.

    """
    rows, columns, count = _sizes(first, second)
    copies = _copies(batches, first, rows * count), _copies(batches, second, count * columns)
    changes = times(first.bound.value, copies[0]), times(second.bound.value, copies[1])
    # The norm of a matrix is at most the root of the number of rows times the longest row. The same holds for columns.
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
    """Return the number of matrices in the product of two values."""
    rows, columns, _ = _sizes(first, second)
    return output.numel() / max(rows * columns, 1)


def products_extent(batches: float, first: Traced, second: Traced) -> Extent:
    """Return the largest size of a matrix product of two values, with its scores."""
    rows, columns, count = _sizes(first, second)
    lengths = first.radius(-1), _columns(second)
    scores = first.bound.extent.scores
    if scores is not None and scores.are_shares:  # the result is a mean
        return Extent(second.bound.extent.entries, second.radius(-1)) if second.value.ndim > 1 else Extent(lengths[1])
    by_row = times(first.bound.value, lengths[1]) * _copies(batches, first, rows * count)
    by_column = times(second.bound.value, lengths[0]) * _copies(batches, second, count * columns)
    is_matrix = min(first.value.ndim, second.value.ndim) > 1 and math.isfinite(by_row + by_column)
    return Extent(times(*lengths), scores=Scores(by_row, by_column) if is_matrix else None)


def _sizes(first: Traced, second: Traced) -> tuple[int, int, int]:
    """Return the numbers of rows and columns of a product, and the number of terms of each sum."""
    rows = first.value.shape[-2] if first.value.ndim > 1 else 1
    columns = second.value.shape[-1] if second.value.ndim > 1 else 1
    return rows, columns, first.value.shape[-1]


def _columns(value: Traced) -> float:
    """Return the largest length of a column."""
    return value.radius(-min(value.value.ndim, 2))


def _copies(batches: float, value: Traced, size: int) -> float:
    """Return the root of the number of copies of each entry, if a value broadcasts to batches of matrices of `size`."""
    return math.sqrt(batches * size / max(value.value.numel(), 1))


def scores_of(batches: float, query: Traced, key: Traced, scale: float) -> Scores:
    """Return bounds of the scores of queries, shape (..., n, d), and keys, shape (..., m, d)."""
    (queries, size), keys = query.value.shape[-2:], key.value.shape[-2]
    return Scores(
        times(query.bound.value, key.radius()) * abs(scale) * _copies(batches, query, queries * size),
        times(key.bound.value, query.radius()) * abs(scale) * _copies(batches, key, keys * size),
    )


def attended(scores: Scores, rows: int, radius: float, values: float) -> float:
    """Return the bound of means of values by the softmax of scores.

    Args:
        scores: Bounds of the changes of the scores.
        rows: n, the number of rows of one matrix of probabilities.
        radius: The largest length of a row of values.
        values: The bound of the values.

    """
    return times(mean_deviation(scores, rows), radius) + math.sqrt(rows) * values


def mean_deviation(scores: Scores, rows: int) -> float:
    """Return the bound of the deviations of the score changes. It also bounds the change of the probabilities."""
    return scores.by_row + times(scores.by_column, math.sqrt(rows))
