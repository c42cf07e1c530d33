"""The minimax concave penalty, against NumPy."""

import numpy as np
import pytest
import torch

from lightning_reg.functional import l1_norm, mcp
from lightning_reg.functional.penalties.elementwise import add_elementwise_gradient_


def some_weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(3, 4), (2, 3, 2, 2), ()]]


def value(weight, strength, gamma):
    """Return the penalty as skglm has it."""
    inside = np.abs(weight) < gamma * strength
    values = np.full_like(weight, gamma * strength**2 / 2)
    values[inside] = strength * np.abs(weight[inside]) - weight[inside] ** 2 / (2 * gamma)
    return values.sum()


def gradient(weight, strength, gamma):
    return np.sign(weight) * np.maximum(strength - np.abs(weight) / gamma, 0)


@pytest.mark.parametrize(("strength", "gamma"), [(0.3, 3.0), (1.0, 0.5), (0.1, 1.0), (5.0, 100.0), (0.0, 3.0)])
def test_value_and_gradient_are_those_of_the_formula(strength, gamma):
    weights = [weight.requires_grad_() for weight in some_weights()]

    result = mcp(weights, strength, gamma)

    assert result.item() == pytest.approx(sum(value(w.detach().numpy(), strength, gamma) for w in weights))
    for weight, found in zip(weights, torch.autograd.grad(result, weights), strict=True):
        np.testing.assert_allclose(found, gradient(weight.detach().numpy(), strength, gamma), atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_in_place_is_that_of_the_formula(dtype):
    weights = some_weights(dtype)
    grads = [torch.ones_like(weight) for weight in weights]

    add_elementwise_gradient_(grads, weights, l1=0.2, l2=-0.2 / 1.2)

    for weight, grad in zip(weights, grads, strict=True):
        np.testing.assert_allclose(grad, 1 + 0.2 * gradient(weight.numpy(), 1.0, 0.6), rtol=1e-6)


def test_large_weights_are_worked_on_in_parts_second_derivatives_and_vmap_are_those_of_the_formula():
    weight = torch.randn(300_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    result = mcp([weight, 2 * weight], 0.4, 2.0)
    (first,) = torch.autograd.grad(result, weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)

    numbers = weight.detach().numpy()
    assert result.item() == pytest.approx(value(numbers, 0.4, 2.0) + value(2 * numbers, 0.4, 2.0))
    expected = gradient(numbers, 0.4, 2.0) + 2 * gradient(2 * numbers, 0.4, 2.0)
    np.testing.assert_allclose(first.detach(), expected, atol=1e-14)
    np.testing.assert_allclose(second, -0.5 * (np.abs(numbers) < 0.8) - 2.0 * (np.abs(numbers) < 0.4), atol=1e-14)
    rows = weight.detach()[:12].view(3, 4)
    torch.testing.assert_close(
        torch.vmap(lambda row: mcp(row, 0.4, 2.0))(rows), torch.stack([mcp(row, 0.4, 2.0) for row in rows])
    )


def test_entries_of_0_and_at_the_end_have_no_gradient_and_half_precision_is_summed_in_float32():
    weight = torch.tensor([0.0, 1.5, -1.5, 4.0], requires_grad=True)
    half = torch.full((100_000,), 0.5, dtype=torch.float16)

    mcp(weight, 0.5, 3.0).backward()

    assert weight.grad.tolist() == pytest.approx([0, 0, 0, 0], abs=1e-7)
    assert mcp(half, 1.0, 2.0).item() == pytest.approx(100_000 * (0.5 - 0.0625))


def test_for_a_large_gamma_it_is_the_1_norm():
    weights = some_weights()

    torch.testing.assert_close(mcp(weights, 0.3, 1e39), 0.3 * sum(weight.abs().sum() for weight in weights))
    assert mcp([]) == l1_norm([]) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([torch.ones(2, dtype=torch.complex64)],), TypeError, "must be real, got torch.complex64"),
        (([torch.ones(2)], -1.0), ValueError, "`strength` must be a finite number >= 0, got -1"),
        (([torch.ones(2)], 1.0, 0.0), ValueError, "`gamma` must be a finite number > 0, got 0"),
        (([torch.ones(2, dtype=torch.float16)], 1e5), ValueError, "`strength` must be at most 65504"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        mcp(*arguments)
