"""The value, gradient and proximal operator of each penalty, against the term written by hand."""

import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lightning_reg import AnchorPenalty, Penalty, SpectralNormPenalty
from lightning_reg.callbacks.penalties.formula import Formula
from tests.documented import EXPORTED
from tests.reference import PENALTIES, every_penalty


def some_weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(3, 4), (2, 3, 2, 2)]]


def test_every_penalty_has_a_term_by_hand():
    penalties = {kind for kind in EXPORTED if issubclass(kind, Penalty)}

    # The norms of layers are followed over steps: tests/callbacks/spectral/test_penalty.py has them. An anchor is what
    # weights were: test_anchor.py.
    assert {type(make()) for make, _ in PENALTIES.values()} == penalties - {SpectralNormPenalty, AnchorPenalty}


@every_penalty
def test_value_and_gradient_agree_with_the_term(name):
    make, term = PENALTIES[name]
    penalty, weights = make(), [weight.requires_grad_() for weight in some_weights()]
    grads = [torch.ones_like(weight) for weight in weights]

    value = penalty.strength * penalty.value(weights)
    penalty.add_gradient(grads, weights, 2 * penalty.strength)

    torch.testing.assert_close(value, term(weights))
    expected = [1 + 2 * gradient for gradient in torch.autograd.grad(term(weights), weights)]
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize(
    "name", [name for name, (make, _) in PENALTIES.items() if type(make()).proximal is not Formula.proximal]
)
@pytest.mark.parametrize("step_size", [0.5, 20.0])
def test_the_operator_finds_the_minimum_that_a_search_finds(name, step_size):
    make, term = PENALTIES[name]
    penalty, start = make(), some_weights()[0]

    def objective(flat):
        weight = torch.from_numpy(flat).view(start.shape)
        return ((weight - start).square().sum() / (2 * step_size) + term([weight])).item()

    result = [start.clone()]
    penalty.proximal(result, [penalty.strength * step_size])

    options = {"maxiter": 40_000, "maxfev": 40_000, "xatol": 1e-10, "fatol": 1e-14, "adaptive": True}
    found = minimize(objective, result[0].flatten().numpy() + 1e-3, method="Nelder-Mead", options=options)
    assert objective(result[0].flatten().numpy()) <= found.fun + 1e-9
    # From elsewhere, too. An objective that is not convex has several minima: none of them may be lower.
    for elsewhere in (start, torch.zeros_like(start), -start, start.clamp(min=0)):
        other = minimize(
            objective, elsewhere.flatten().numpy(), method="Powell", options={"xtol": 1e-10, "ftol": 1e-14}
        )
        assert objective(result[0].flatten().numpy()) <= other.fun + 1e-9
        assert np.isfinite(other.fun)
    assert inspect.getdoc(type(penalty).penalty)


@pytest.mark.parametrize("name", [name for name, (make, _) in PENALTIES.items() if make().elementwise])
@pytest.mark.parametrize("step_size", [0.5, 20.0])
def test_the_operator_of_a_sum_over_entries_finds_the_minimum_of_a_grid(name, step_size):
    make, term = PENALTIES[name]
    penalty, start = make(), torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)
    result = [start.clone()]

    penalty.proximal(result, [penalty.strength * step_size])

    for before, after in zip(start, result[0], strict=True):
        grid = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
        costs = [((u - before).square() / (2 * step_size) + term([u])).item() for u in (after, *grid)]
        assert costs[0] <= min(costs) + 1e-12
