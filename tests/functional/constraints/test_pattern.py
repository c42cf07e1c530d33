"""At most n of m neighbours, against sorting by hand."""

import numpy as np
import pytest
import torch

from lightning_reg.functional.constraints import pattern
from lightning_reg.functional.constraints.pattern import keep_largest_, leave_


def by_sorting(weight, keep, m, dim):
    """Return the result of sorting m entries at a time; of equal magnitudes the first comes first."""
    rows = np.moveaxis(weight.copy(), dim, -1)
    groups = rows.reshape(*rows.shape[:-1], -1, m)
    order = np.argsort(-np.abs(groups), axis=-1, kind="stable")
    np.put_along_axis(groups, order[..., keep:], 0.0, axis=-1)
    return np.moveaxis(groups.reshape(rows.shape), -1, dim)


@pytest.mark.parametrize(("keep", "m"), [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (5, 12), (0, 4)])
@pytest.mark.parametrize("dim", [1, 0, -1])
def test_the_largest_of_each_group_stay(keep, m, dim, monkeypatch):
    monkeypatch.setattr(pattern, "_CPU_ENTRIES", 100)  # several parts of one weight
    matrix, kernel = torch.randn(24, 24), torch.randn(24, 24, 3).contiguous()
    kernel = kernel if dim != -1 else kernel.transpose(1, 2).contiguous()
    expected = [by_sorting(weight.numpy(), keep, m, dim) for weight in (matrix, kernel)]

    keep_largest_([matrix, kernel], keep, m, dim=dim)

    for weight, values in zip((matrix, kernel), expected, strict=True):
        np.testing.assert_array_equal(weight.numpy(), values)


def test_the_first_of_equal_magnitudes_stay():
    weight, of_many = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 0.0, 2.0, -2.0]]), torch.ones(1, 12)

    keep_largest_([weight], 2, 4, dim=1)
    keep_largest_([of_many], 5, 12, dim=1)

    assert weight.tolist() == [[1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 2.0, -2.0]]
    assert of_many.tolist() == [[1.0] * 5 + [0.0] * 7]


@pytest.mark.parametrize("m", [4, 12])
def test_a_nan_is_not_hidden(m):
    weight = torch.ones(1, m)
    weight[0, -2] = torch.nan

    keep_largest_([weight], 1, m, dim=1)

    assert weight.isnan().any()
    assert (weight != 0).sum() == 1


def test_views_with_other_strides_are_changed_in_place():
    stored = torch.randn(8, 5)
    expected = by_sorting(stored.T.numpy(), 2, 4, 1).T

    keep_largest_([stored.T], 2, 4, dim=1)

    np.testing.assert_array_equal(stored.numpy(), expected)


def test_empty_weights_are_allowed():
    weight = torch.empty(0, 4)

    keep_largest_([weight], 2, 4, dim=1)

    assert weight.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_new_zeros_are_plus_zero(dtype):
    values = [1.5, -2.0, torch.inf, torch.nan, -0.0, -3.0]
    weight = torch.tensor([values, values], dtype=dtype)

    leave_(weight.T, torch.tensor([[True, False]] * 6))

    assert weight[0].tolist()[:3] == values[:3]
    assert weight[0, 3].isnan()
    assert weight[1].tolist() == [0.0] * 6
    assert not weight[1].signbit().any()
