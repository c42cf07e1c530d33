"""Norms of units against the definitions of Keras, in NumPy."""

import numpy as np
import pytest
import torch

from lightning_reg.functional.constraints.norms import limit_norms_, move_norms_, normalize_

EPSILON = 1e-7  # of Keras
SHAPES = [(5, 7), (4, 3, 3), (3, 2, 3, 3), (6,)]


def norms_of(weight, dim):
    others = tuple(other for other in range(weight.ndim) if other != dim % weight.ndim)
    return np.sqrt(np.sum(np.square(weight), axis=others, keepdims=True)) if others else np.abs(weight)


def max_norm(weight, dim):
    norms = norms_of(weight, dim)
    return weight * (np.clip(norms, 0, 1.5) / (EPSILON + norms))


def unit_norm(weight, dim):
    return weight / (EPSILON + norms_of(weight, dim))


def min_max_norm(weight, dim):
    norms = norms_of(weight, dim)
    desired = 0.7 * np.clip(norms, 0.9, 1.5) + 0.3 * norms
    return weight * (desired / (EPSILON + norms))


KINDS = {
    "max": (lambda weights, dim: limit_norms_(weights, 1.5, dim=dim), max_norm),
    "unit": (lambda weights, dim: normalize_(weights, dim=dim), unit_norm),
    "min max": (lambda weights, dim: move_norms_(weights, 0.9, 1.5, 0.7, dim=dim), min_max_norm),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_formulas_agree_with_keras(kind, dim, dtype):
    ours, truth = KINDS[kind]
    spread = torch.logspace(-1.3, 0.5, 6, dtype=torch.float64)
    weights = [
        (torch.randn(shape, dtype=torch.float64).movedim(0, -1) * spread[: shape[0]]).movedim(-1, 0).to(dtype)
        for shape in SHAPES
        if len(shape) > dim
    ]
    expected = [truth(weight.double().numpy(), dim) for weight in weights]

    ours(weights, dim)

    for weight, values in zip(weights, expected, strict=True):
        rounding = torch.finfo(dtype).eps
        np.testing.assert_allclose(weight.double().numpy(), values, rtol=max(5e-6, 4 * rounding), atol=1e-6)


def test_units_inside_stay_bit_for_bit_and_zero_ones_stay_zero():
    inside, zero = torch.randn(3, 4) / 10, torch.zeros(2, 4)
    weight = torch.cat([inside, zero])
    limited, moved, unit = weight.clone(), weight.clone(), weight.clone()

    limit_norms_([limited], 1.0, dim=0)
    move_norms_([moved], 0.0, 1.0, 1.0, dim=0)
    normalize_([unit], dim=0)

    assert torch.equal(limited, weight)
    assert torch.equal(moved, weight)
    assert torch.equal(unit[3:], zero)
    torch.testing.assert_close(unit[:3].norm(dim=1), torch.ones(3))


def test_no_weights_and_empty_ones_are_allowed():
    empty = torch.empty(0, 3)

    limit_norms_([], 1.0, dim=0)
    limit_norms_([empty], 1.0, dim=0)

    assert empty.shape == (0, 3)


def test_a_nan_is_not_hidden():
    weight = torch.tensor([[torch.nan, 1.0], [3.0, 4.0]])

    limit_norms_([weight], 1.0, dim=0)

    assert weight[0].isnan().all()
    torch.testing.assert_close(weight[1], torch.tensor([0.6, 0.8]))
