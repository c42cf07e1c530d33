"""The operator of the minimax concave penalty: against its objective on a fine grid, and exact where promised."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_reg.functional import mcp_prox

FORMS = {
    "number": lambda value: value,
    "tensor of one entry": lambda value: torch.tensor(value, dtype=torch.float64),
    "tensor": lambda value: torch.full((2, 3), value, dtype=torch.float64),
}


def objective(u, w, size, strength, gamma):
    """Return half the squared distance, and the penalty times the step size."""
    modulus = np.abs(u)
    inside = strength * modulus - u**2 / (2 * gamma)
    penalty = np.where(modulus <= gamma * strength, inside, gamma * strength**2 / 2)
    return (u - w) ** 2 / 2 + size * penalty


def assert_is_minimum(found, w, size, strength, gamma):
    grid = np.linspace(-1.1, 1.1, 20_001) * max(abs(w), 1e-3)
    least = min(
        objective(grid, w, size, strength, gamma).min(), objective(np.array([0.0, w]), w, size, strength, gamma).min()
    )
    assert objective(np.array(found), w, size, strength, gamma) <= least * (1 + 1e-12) + 1e-15


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("size", [0.0, 0.3, 0.5, 0.999999, 1.0, 1.000001, 3.0, 40.0])
def test_no_point_of_a_fine_grid_is_better(form, gamma, size):
    weight = 2 * torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    (result,) = mcp_prox([weight], 0.6, gamma, form(size))

    for start, found in zip(weight.flatten().tolist(), result.flatten().tolist(), strict=True):
        assert_is_minimum(found, start, size, 0.6, gamma)


@given(st.floats(-4, 4), st.floats(0.01, 8), st.floats(0.01, 2), st.floats(0.1, 5))
def test_nor_is_one_for_any_numbers(w, size, strength, gamma):
    for step_size in (size, torch.tensor([size], dtype=torch.float64)):
        result = mcp_prox(torch.tensor([w], dtype=torch.float64), strength, gamma, step_size)

        assert_is_minimum(result.item(), w, size, strength, gamma)


def test_each_entry_may_have_its_own_step_size_on_both_sides_of_gamma():
    weight = torch.tensor([0.5, 1.0, 2.0, 3.5, 2.9, 3.1, 4.0, 4.1], dtype=torch.float64)
    sizes = torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 16 / 3, 16 / 3], dtype=torch.float64)

    result = mcp_prox(weight, 1.0, 3.0, sizes)

    # Firm: 0 up to 1, (w - 1) * 3/2 up to 3. From a step size of 3 on: 0 up to the root of size * 3.
    expected = torch.tensor([0.0, 0.0, 1.5, 3.5, 0.0, 3.1, 0.0, 4.1], dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.7, 4.0])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_ties_are_zero_large_entries_stay_to_the_bit_and_nothing_becomes_minus_zero(dtype, size, as_tensor):
    threshold = torch.tensor(0.7, dtype=dtype).item() if size < 1 else 2.0  # the root of 4 * 1
    weight = torch.tensor([threshold, -threshold, 0.3, -0.3, 0.0, -0.0, 3.3, -3.3, math.nan], dtype=dtype)
    step_size = torch.tensor(threshold if size < 1 else size, dtype=torch.promote_types(dtype, torch.float32))

    result = mcp_prox(weight, 1.0, 1.0, step_size if as_tensor else step_size.item())

    assert result[:6].tolist() == [0.0] * 6
    assert not result[:6].signbit().any()
    assert torch.equal(result[6:8], weight[6:8])
    assert result[8].isnan()


def test_a_step_that_did_not_happen_changes_nothing():
    weight = torch.tensor([0.3, -0.0, 1e-30, -7.0])

    for size in (0.0, torch.zeros(()), torch.zeros(4)):
        assert torch.equal(mcp_prox(weight, 0.5, 3.0, size), weight)
        assert torch.equal(mcp_prox(weight, 0.0, 3.0, size), weight)


def test_it_works_in_place_only_if_told_to():
    weights = [torch.tensor([0.5, -2.0, 5.0]), torch.empty(0), torch.tensor(3.0)]
    before = [weight.clone() for weight in weights]

    results = mcp_prox(weights, 1.0)

    torch.testing.assert_close(weights, before, rtol=0, atol=0)
    inplace = mcp_prox(weights, 1.0, inplace=True)
    assert all(result is weight for result, weight in zip(inplace, weights, strict=True))
    torch.testing.assert_close(inplace, results, rtol=0, atol=0)
    assert mcp_prox([]) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([torch.ones(2, dtype=torch.complex64)],), TypeError, "got torch.complex64.*view_as_real"),
        (([torch.ones(2)], -1.0), ValueError, "`strength` must be a finite number >= 0, got -1"),
        (([torch.ones(2)], 1.0, -2.0), ValueError, "`gamma` must be a finite number > 0, got -2"),
        (([torch.ones(2)], 1.0, 3.0, -0.1), ValueError, "`step_size` must be a finite number >= 0, got -0.1"),
        (([torch.ones(2)], 1.0, 3.0, [1.0, 1.0]), ValueError, "one value, or one for each of 1 weights, got 2"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        mcp_prox(*arguments)
