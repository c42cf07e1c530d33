"""The group lasso: its value against NumPy, its gradient against autograd, its proximal operator against SciPy."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from lightning_reg.functional import group_lasso, group_soft_threshold, soft_threshold
from lightning_reg.functional.penalties.group_lasso import add_group_gradient_

SHAPES = [((4, 3), 0), ((4, 3), 1), ((4, 3, 2, 2), 0), ((4, 3, 2, 2), 1), ((5,), 0), ((4, 3), -1)]
every_shape = pytest.mark.parametrize(("shape", "dim"), SHAPES)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rows(weight, dim):
    """Return the groups as rows of a matrix, of NumPy."""
    return np.moveaxis(weight.detach().double().numpy(), dim, 0).reshape(weight.shape[dim], -1)


@every_shape
def test_the_value_is_the_sum_of_weighted_norms(shape, dim):
    weights = [random(*shape), random(*shape, seed=1)]

    value = group_lasso(weights, 0.3, dim=dim)

    groups = np.concatenate([rows(weight, dim) for weight in weights])
    assert value.item() == pytest.approx(0.3 * groups.shape[1] ** 0.5 * np.linalg.norm(groups, axis=1).sum())


def test_nothing_to_sum_gives_zero():
    assert group_lasso([]) == 0
    assert group_lasso([torch.empty(0, 3), torch.empty(3, 0)]) == 0
    assert group_soft_threshold([torch.empty(0, 3), torch.empty(3, 0)], 0.1)[1].shape == (3, 0)


def test_a_group_of_one_makes_it_the_1_norm():
    weight = random(6, 1)

    torch.testing.assert_close(group_lasso([weight]), weight.abs().sum())
    for threshold in (0.5, torch.full((6, 1), 0.5)):
        torch.testing.assert_close(group_soft_threshold([weight], threshold), soft_threshold([weight], 0.5))


def test_half_precision_is_summed_in_float32():
    value = group_lasso([torch.full((1, 10_000), 0.01, dtype=torch.bfloat16)])

    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(10_000 * torch.tensor(0.01, dtype=torch.bfloat16).item(), rel=1e-5)


@every_shape
def test_the_gradient_agrees_with_finite_differences(shape, dim):
    assert torch.autograd.gradcheck(lambda weight: group_lasso([weight], 0.3, dim=dim), random(*shape).requires_grad_())


@every_shape
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_the_gradient_in_place_agrees_with_autograd(shape, dim, dtype):
    weights = [random(*shape, dtype=dtype).requires_grad_(), random(*shape, dtype=dtype, seed=1).requires_grad_()]
    expected = torch.autograd.grad(group_lasso(weights, 0.3, dim=dim), weights)
    grads = [torch.ones_like(weight) for weight in weights]

    add_group_gradient_(grads, weights, 0.3, dim=dim)

    for grad, gradient in zip(grads, expected, strict=True):
        rounding = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(grad, 1 + gradient, rtol=rounding, atol=rounding)


@every_shape
def test_the_gradient_of_a_zero_group_is_zero(shape, dim):
    weight = random(*shape)
    weight.select(dim, 0).zero_()
    weight.requires_grad_()
    gradient, grad = torch.autograd.grad(group_lasso([weight], dim=dim), weight)[0], torch.zeros_like(weight)

    add_group_gradient_([grad], [weight], 1.0, dim=dim)

    for found in (gradient, grad):
        assert (found.select(dim, 0) == 0).all()
        assert (found.select(dim, 1) != 0).all()


@every_shape
@pytest.mark.parametrize("threshold", [0.2, 0.6, 2.0])
def test_with_one_threshold_the_operator_is_the_closed_form(shape, dim, threshold):
    weight = random(*shape)

    for form in (
        threshold,
        torch.tensor(threshold, dtype=torch.float64),
        torch.full(shape, threshold, dtype=torch.float64),
    ):
        (result,) = group_soft_threshold([weight], form, dim=dim)

        groups = rows(weight, dim)
        norms = np.linalg.norm(groups, axis=1, keepdims=True)
        expected = groups * np.maximum(1 - threshold * groups.shape[1] ** 0.5 / norms, 0)
        np.testing.assert_allclose(rows(result, dim), expected, rtol=1e-12, atol=1e-15)
        assert ((rows(result, dim) == 0) == (expected == 0)).all()


@pytest.mark.parametrize(("shape", "dim"), SHAPES[:4])
@pytest.mark.parametrize(("scale", "spread"), [(0.9, 0.1), (0.9, 0.5), (0.3, 3.0)])
def test_with_a_threshold_per_entry_the_operator_agrees_with_scipy(shape, dim, scale, spread):
    weight = random(*shape)
    threshold = scale * torch.exp(spread * random(*shape, seed=1))
    weight.select(dim, 0).div_(20)

    (result,) = group_soft_threshold([weight], threshold, dim=dim)

    is_zero = []
    for start, tau, found in zip(rows(weight, dim), rows(threshold, dim), rows(result, dim), strict=True):

        def objective(u, start=start, tau=tau):
            return ((u - start) ** 2 / (2 * tau)).sum() + len(start) ** 0.5 * np.linalg.norm(u)

        best = minimize(objective, start, method="BFGS", options={"gtol": 1e-10})
        assert objective(found) <= best.fun + 1e-12
        np.testing.assert_allclose(found, best.x, atol=1e-4)
        is_zero.append(not found.any())
        if not is_zero[-1]:  # where the objective is smooth, its gradient vanishes
            gradient = (found - start) / tau + len(start) ** 0.5 * found / np.linalg.norm(found)
            assert np.abs(gradient).max() <= 1e-10 * np.abs(start / tau).max()
    assert any(is_zero) or spread > 1
    assert not all(is_zero)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("dim", [0, 1])
def test_hard_groups_are_as_exact_as_the_easy_ones_beside_them(dtype, tolerance, dim):
    weight, threshold = random(40, 30, seed=2), torch.full((40, 30), 1e-4, dtype=torch.float64)
    # The last groups are nearly zero, with thresholds over eight orders of magnitude; of one, nothing is known.
    threshold[30:] = 10 ** (8 * torch.rand(10, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 6)
    weight[30:] *= (
        (1 + 10.0 ** (-torch.arange(10) / 2)[:, None]) * 30**0.5 / (weight[30:] / threshold[30:]).norm(dim=1)[:, None]
    )
    weight[5] = torch.nan
    weight, threshold = weight.to(dtype), threshold.to(dtype)

    result = group_soft_threshold(weight.movedim(0, dim), threshold.movedim(0, dim), dim=dim).movedim(dim, 0)

    for index, (start, tau, found) in enumerate(
        zip(*(t.double().numpy() for t in (weight, threshold, result)), strict=True)
    ):
        if index == 5:
            assert np.isnan(found).all()
            continue
        shift = tau * 30**0.5
        norm = brentq(lambda r, w=start, d=shift: ((w / (r + d)) ** 2).sum() - 1, 1e-200, 1e3, xtol=1e-300, rtol=1e-15)
        assert (abs(found - start * norm / (norm + shift)) <= tolerance * abs(start)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_group_is_exactly_zero_without_a_sign(dtype):
    weight = torch.tensor([[0.1, -0.1], [3.0, -4.0], [0.0, -0.0]], dtype=dtype)

    for threshold in (1.0, torch.tensor(1.0), torch.tensor([[1.0, 1.5], [1.0, 1.5], [1.0, 1.5]])):
        (result,) = group_soft_threshold([weight], threshold)

        assert result[[0, 2]].tolist() == [[0.0, 0.0], [0.0, 0.0]]
        assert not torch.signbit(result[[0, 2]]).any()
        assert (result[1] != 0).all()
        assert result.dtype == dtype


def test_a_norm_equal_to_the_threshold_becomes_zero():
    weight = torch.tensor([[3.0, 4.0, 0.0, 0.0]])

    assert (group_soft_threshold([weight], 2.5)[0] == 0).all()
    assert group_soft_threshold([weight], 2.4999)[0].any()


def test_thresholds_of_zero_change_nothing():
    weight = torch.tensor([[0.1, -0.1], [3.0, -4.0], [0.0, 0.0]])

    for threshold in (0.0, torch.tensor(0.0), torch.zeros(3, 2)):
        torch.testing.assert_close(group_soft_threshold([weight], threshold), [weight], rtol=0, atol=0)


@pytest.mark.parametrize("threshold", [0.0, torch.tensor(0.0), torch.zeros(2, 3)], ids=["number", "scalar", "entries"])
@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-23, 1e19, 1e30])
def test_groups_whose_squares_are_out_of_range_stay_at_a_threshold_of_zero(size, threshold):
    weight = size * torch.tensor([[0.5, 0.0, -1.0], [1.0, 2.0, 3.0]])

    torch.testing.assert_close(group_soft_threshold(weight, threshold), weight, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_groups_whose_squares_are_out_of_range_leave_the_groups_beside_them_exact(size):
    weight, thresholds = torch.tensor([[3.0, 4.0], [size, -size]]), torch.tensor([[0.5, 0.5], [1e-6, 2e-6]])

    result = group_soft_threshold(weight, thresholds)

    expected = torch.tensor([[3.0, 4.0], [size, -size]]) * (1 - torch.tensor([[0.5 * 2**0.5 / 5], [float(size < 1)]]))
    torch.testing.assert_close(result, expected)


def test_an_entry_whose_threshold_is_zero_stays_and_the_rest_of_its_group_shrinks():
    weight, threshold = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 100.0]])

    (result,) = group_soft_threshold([weight], threshold)

    assert result[0, 0] == 0.5
    assert 0 < result[0, 1] < 0.01


def test_it_works_in_place_only_if_told_to():
    weights = [random(4, 3), random(3, 4).t()]
    before = [weight.clone() for weight in weights]

    results = group_soft_threshold(weights, [0.3, torch.full((4, 3), 0.4)])

    torch.testing.assert_close(weights, before, rtol=0, atol=0)
    inplace = group_soft_threshold(weights, [0.3, torch.full((4, 3), 0.4)], inplace=True)
    assert all(result is weight for result, weight in zip(inplace, weights, strict=True))
    torch.testing.assert_close(inplace, results, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: group_lasso([torch.ones(2)], dim=1), ValueError, "got 1 for one of shape"),
        (lambda: group_lasso([torch.ones(2)], dim=0.0), TypeError, "`dim` must be an int"),
        (lambda: group_lasso([torch.ones(2)], -1), ValueError, "`strength` must be a finite number >= 0, got -1"),
        (lambda: group_soft_threshold([torch.ones(2)], 1.0, dim=1), ValueError, "got 1 for one of shape"),
        (lambda: group_soft_threshold([torch.ones(2, dtype=torch.complex64)], 1.0), TypeError, "torch.complex64"),
        (lambda: group_soft_threshold([torch.ones(2)], -1.0), ValueError, "`threshold` must be a finite number >= 0"),
    ],
)
def test_a_bad_argument_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
