"""The elastic net against scikit-learn, and what it refuses; `test_norms.py` tests it beside the norms it combines."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet

from lightning_reg.functional import elastic_net, l1_norm, squared_l2_norm
from lightning_reg.functional.penalties.elementwise import add_elementwise_gradient_


@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.1, 0.5), (0.3, 0.9), (0.05, 0.1), (0.5, 1.0)])
def test_scikit_learns_solution_is_the_minimum_of_our_objective(alpha, l1_ratio):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(60, 8))
    targets = inputs @ [3, -2, 0, 0, 1, 0, 0, 0.5] + generator.normal(size=60)
    model = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-13, max_iter=100_000)
    solution = torch.tensor(model.fit(inputs, targets).coef_)

    def objective(weights):
        residuals = torch.tensor(targets) - torch.tensor(inputs) @ weights
        return residuals.square().sum() / 120 + elastic_net([weights], alpha, l1_ratio)

    minimum = objective(solution)
    directions = torch.randn(200, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert all(objective(solution + 1e-3 * direction) > minimum for direction in directions)
    # Where a coefficient is not 0, the gradient vanishes.
    weights = solution.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(weights), weights)
    assert gradient[solution != 0].abs().max() < 1e-6


@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.0, 0.5), (0.3, 0.0), (0.3, 1.0), (2, 1), (np.float32(0.5), 0.25)])
def test_the_value_is_the_written_formula(alpha, l1_ratio):
    weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([0.5])]

    value = elastic_net(weights, alpha, l1_ratio)

    assert value.item() == pytest.approx(alpha * (l1_ratio * 3.5 + (1 - l1_ratio) / 2 * 5.25))


def test_the_defaults_agree_with_scikit_learn():
    defaults = ElasticNet().get_params()
    weights = [torch.tensor([1.0, -2.0])]

    torch.testing.assert_close(elastic_net(weights), elastic_net(weights, defaults["alpha"], defaults["l1_ratio"]))


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=10),
    st.floats(0, 100),
    st.floats(0, 1),
)
def test_it_is_a_mixture_of_the_two_norms(values, alpha, l1_ratio):
    weights = [torch.tensor(values, dtype=torch.float64)]
    mixture = alpha * (l1_ratio * l1_norm(weights) + (1 - l1_ratio) / 2 * squared_l2_norm(weights))

    torch.testing.assert_close(elastic_net(weights, alpha, l1_ratio), mixture)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": -1}, ValueError, "`alpha` must be a finite number >= 0, got -1"),
        ({"alpha": math.nan}, ValueError, "`alpha` must be a finite number, got nan"),
        ({"alpha": math.inf}, ValueError, "`alpha` must be a finite number, got inf"),
        ({"alpha": True}, TypeError, "`alpha` must be a number, got True of type bool"),
        ({"alpha": "0.1"}, TypeError, r"`alpha` must be a number, got '0\.1' of type str"),
        ({"alpha": torch.tensor(0.1)}, TypeError, r"`alpha` must be a number, got tensor\(.*\) of type Tensor"),
        ({"alpha": None}, TypeError, "`alpha` must be a number, got None"),
        ({"l1_ratio": 1.5}, ValueError, r"`l1_ratio` must be in \[0, 1\], got 1\.5"),
        ({"l1_ratio": -0.1}, ValueError, r"`l1_ratio` must be in \[0, 1\], got -0\.1"),
        ({"l1_ratio": math.nan}, ValueError, "`l1_ratio` must be a finite number, got nan"),
        ({"l1_ratio": False}, TypeError, "`l1_ratio` must be a number, got False of type bool"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        elastic_net([torch.ones(2)], **arguments)


# The gradient in place, with which callbacks do without a graph

FACTORS = [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2), (0.0, 0.0), (-0.3, -0.2)]


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    "weights",
    [
        list,
        lambda: [torch.empty(0)],
        lambda: [random(3, 4), torch.tensor(0.5), torch.empty(2, 0), random(5)],
        lambda: [torch.tensor([0.0, -0.0, 1.0])],
        lambda: [random(3), random(2**20 + 5), random(2**19), random(4)],
        lambda: [random(2**17 + size) for size in range(5)],
        lambda: [
            random(1200, 1000).t(),
            random(64, 48, 10, 10).to(memory_format=torch.channels_last),
            random(8, 8)[::2, 1:],
        ],
        lambda: [random(4, dtype=torch.float64), random(4, dtype=torch.float16), random(4, dtype=torch.bfloat16)],
        lambda: [random(4, dtype=torch.complex64), random(4)],
    ],
    ids=["none", "empty", "small", "zeros", "large", "many", "not contiguous", "mixed", "complex"],
)
@pytest.mark.parametrize(("l1", "l2"), FACTORS)
def test_the_gradient_is_added_in_place(weights, l1, l2):
    leaves = [weight.requires_grad_() for weight in weights()]
    before = [torch.full_like(leaf, 0.5) for leaf in leaves]
    grads = [gradient.clone() for gradient in before]
    objective = sum((l1 * leaf.abs().sum() + l2 * leaf.abs().square().sum() for leaf in leaves), start=torch.zeros(()))
    expected = torch.autograd.grad(objective, leaves) if leaves else ()

    add_elementwise_gradient_(grads, leaves, l1=l1, l2=l2)

    for gradient, start, added in zip(grads, before, expected, strict=True):
        rounding = 8 * torch.finfo(gradient.dtype).eps
        torch.testing.assert_close(gradient, start + added, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_may_lie_in_memory_in_another_order_than_weights(grad_format, weight_format):
    weight = random(64, 48, 10, 10).to(memory_format=weight_format)
    gradient = torch.zeros(64, 48, 10, 10).to(memory_format=grad_format)

    add_elementwise_gradient_([gradient], [weight], l1=0.3, l2=0.2)

    torch.testing.assert_close(gradient, 0.3 * weight.sign() + 0.4 * weight)


def test_gradients_on_several_devices_are_added_to_each():
    weights = [torch.tensor([1.0, -2.0]), torch.empty(3, device="meta")]
    grads = [torch.zeros(2), torch.empty(3, device="meta")]

    add_elementwise_gradient_(grads, weights, l1=0.5, l2=1.0)

    torch.testing.assert_close(grads[0], torch.tensor([2.5, -4.5]))
