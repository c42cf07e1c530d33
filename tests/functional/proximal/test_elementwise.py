"""Proximal operators entry by entry: against their definition, minimised numerically, and exact where promised."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.linear_model import ElasticNet

from lightning_reg.functional import elastic_net_prox, soft_threshold

FORMS = {
    "number": lambda value: value,
    "tensor of one entry": lambda value: torch.tensor(value, dtype=torch.float64),
    "tensor": lambda value: torch.full((2, 3), value, dtype=torch.float64),
}


def random(dtype=torch.float64):
    return torch.randn(2, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.5, 1.0), (0.5, 0.0), (0.8, 0.3), (0.0, 0.5)])
def test_the_result_minimises_distance_plus_penalty(form, alpha, l1_ratio):
    weight = random()

    (result,) = elastic_net_prox([weight], form(alpha), l1_ratio)

    for start, found in zip(weight.flatten().tolist(), result.flatten().tolist(), strict=True):
        best = minimize_scalar(
            lambda u, w=start: (u - w) ** 2 / 2 + alpha * (l1_ratio * abs(u) + (1 - l1_ratio) / 2 * u**2),
            bounds=(-4, 4),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert found == pytest.approx(best.x, abs=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_soft_threshold_is_exact_at_the_threshold_and_next_to_it(form, dtype):
    threshold = torch.tensor(0.3, dtype=dtype)
    above = torch.nextafter(threshold.float(), torch.tensor(1.0)) if dtype == torch.float32 else threshold * 1.125
    weight = torch.stack([threshold, above.to(dtype), -threshold, -above.to(dtype), threshold / 2, 0 * threshold])

    (result,) = soft_threshold([weight.view(2, 3)], form(threshold.item()))

    one, two, three, four, five, six = result.flatten().tolist()
    assert one == three == five == six == 0
    assert two == -four == (above.to(dtype) - threshold).item() > 0


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), st.floats(0, 10, width=32), st.booleans())
def test_no_entry_becomes_minus_zero(values, threshold, as_tensor):
    weight = torch.tensor([*values, -0.0, threshold, -threshold])

    (result,) = soft_threshold([weight], torch.tensor(threshold) if as_tensor else threshold)

    assert not torch.signbit(result[result == 0]).any()
    torch.testing.assert_close(result, weight.sign() * (weight.abs() - threshold).clamp(min=0), rtol=0, atol=0)


def test_a_nan_stays_one():
    assert soft_threshold([torch.tensor([math.nan])], 1.0)[0].isnan().all()
    assert soft_threshold([torch.tensor([math.nan])], torch.ones(1))[0].isnan().all()


@pytest.mark.parametrize("operator", [soft_threshold, elastic_net_prox])
def test_it_works_in_place_only_if_told_to(operator):
    weights = [random(), random(torch.float32).t(), torch.empty(0), torch.tensor(3.0)]
    before = [weight.clone() for weight in weights]

    results = operator(weights, 0.5)

    torch.testing.assert_close(weights, before, rtol=0, atol=0)
    inplace = operator(weights, 0.5, inplace=True)
    assert all(result is weight for result, weight in zip(inplace, weights, strict=True))
    torch.testing.assert_close(inplace, results, rtol=0, atol=0)
    assert operator([], 0.5) == []


def test_parameters_may_be_changed_in_place_and_get_no_graph():
    weight = torch.nn.Parameter(random())

    assert soft_threshold([weight], 0.5, inplace=True)[0].grad_fn is None
    assert not soft_threshold([weight], 0.5)[0].requires_grad


def test_each_weight_may_have_its_own_threshold_of_its_own_kind():
    weights = [torch.tensor([3.0, -1.0]), torch.tensor([3.0, -1.0]), torch.tensor([3.0, -1.0])]

    results = soft_threshold(weights, [0.5, torch.tensor(2.0), torch.tensor([4.0, 0.5])])

    torch.testing.assert_close(
        results, [torch.tensor([2.5, -0.5]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, -0.5])], rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_thresholds_may_be_whole_numbers(dtype, shape):
    result = soft_threshold(torch.tensor([3.0, -3.0, 0.5]), torch.ones(shape, dtype=dtype))

    assert result.tolist() == [2.0, -2.0, 0.0]


def test_thresholds_may_broadcast_or_be_of_another_precision():
    weight = torch.tensor([[1 + 1e-12, -3.0], [0.5, 2.0]], dtype=torch.float64)

    for threshold in (torch.tensor([[0.5], [1.0]]), torch.tensor([[0.5, 0.5], [1.0, 1.0]])):
        result = soft_threshold(weight, threshold)

        assert result.tolist() == [[weight[0, 0].item() - 0.5, -2.5], [0.0, 1.0]]
        assert threshold[:, 0].tolist() == [0.5, 1.0]


def test_with_an_identity_as_data_it_solves_scikit_learns_elastic_net():
    targets = random().flatten().numpy()
    model = ElasticNet(alpha=0.1, l1_ratio=0.4, fit_intercept=False, tol=1e-14)
    identity = torch.eye(6, dtype=torch.float64).numpy()

    (result,) = elastic_net_prox([torch.tensor(targets)], 6 * 0.1, 0.4)  # scikit-learn divides the squares by n

    torch.testing.assert_close(result, torch.tensor(model.fit(identity, targets).coef_))


@pytest.mark.parametrize(
    ("weights", "arguments", "error", "message"),
    [
        ([torch.ones(2)], (-1,), ValueError, "must be a finite number >= 0, got -1"),
        ([torch.ones(2)], (math.nan,), ValueError, "must be a finite number, got nan"),
        ([torch.ones(2)], ("0.1",), TypeError, "must be a number, got '0.1'"),
        ([torch.ones(2)], ([0.1, 0.1],), ValueError, "one value, or one for each of 1 weights, got 2"),
        ([torch.ones(2, dtype=torch.complex64)], (0.1,), TypeError, "got torch.complex64.*view_as_real"),
        ([torch.ones(2, dtype=torch.int64)], (0.1,), TypeError, "got torch.int64"),
        ([[1.0]], (0.1,), TypeError, "got one with .* of type list in it"),
    ],
)
@pytest.mark.parametrize("operator", [soft_threshold, elastic_net_prox])
def test_a_bad_argument_is_refused(operator, weights, arguments, error, message):
    with pytest.raises(error, match=message):
        operator(weights, *arguments)


def test_a_bad_ratio_is_refused():
    with pytest.raises(ValueError, match=r"`l1_ratio` must be in \[0, 1\], got 2"):
        elastic_net_prox([torch.ones(2)], 0.1, 2)
