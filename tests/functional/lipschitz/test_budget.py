"""Bounds of layers that come after the time is up, against NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import lipschitz_bound
from lightning_reg.functional.lipschitz.budget import cheap_norm, within

NEVER, AT_ONCE = 1e9, -1.0


def matrices():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((1, 1), (1, 9), (9, 1), (30, 40), (40, 30)):
        matrix = torch.randn(rows, columns, generator=generator)
        yield from (matrix, matrix.abs(), torch.ones(rows, columns), torch.outer(matrix[:, 0], matrix[0]))
        yield from (matrix.double() * 1e200, matrix.double() * 1e-200, matrix * 1e-42, matrix * 0)
        yield matrix * (torch.rand(rows, 1, generator=generator) < 0.3)
    yield torch.eye(20)


@pytest.mark.parametrize("matrix", list(matrices()), ids=lambda matrix: "x".join(map(str, matrix.shape)))
def test_the_cheap_bound_of_a_matrix_is_above_its_norm_and_no_more_than_either_formula(matrix):
    scale = matrix.abs().max().item() or 1.0
    entries = matrix.double().numpy() / scale
    schur = math.sqrt(np.linalg.norm(entries, 1) * np.linalg.norm(entries, np.inf))

    bound = cheap_norm(matrix) / scale

    assert np.linalg.norm(entries, 2) <= bound <= min(schur, np.linalg.norm(entries)) * (1 + 1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_cheap_bound_of_a_matrix_that_is_not_finite_is_nan(value):
    assert math.isnan(cheap_norm(torch.tensor([[1.0, value], [0.0, 2.0]])))


def network():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.Linear(8, 8),
    )
    return nn.Sequential(*layers).eval()


def test_norms_that_begin_after_the_limit_are_cheap_and_counted():
    module, image = network(), torch.randn(1, 3, 4, 4)
    with within(NEVER) as budget:
        exact = lipschitz_bound(module, image)
    assert budget.cheap == 0
    assert exact == lipschitz_bound(module, image)

    with within(AT_ONCE) as budget:
        cheap = lipschitz_bound(module, image)

    assert budget.cheap == 4  # the convolution once more with batch normalization
    kernel, matrix = module[0].weight.detach().numpy(), module[5].weight.detach().numpy()
    assert cheap.per_layer["0"] == pytest.approx(3 * np.linalg.norm(kernel.reshape(6, -1), 2), rel=1e-4)
    schur = math.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf))
    assert cheap.per_layer["5"] == pytest.approx(min(schur, np.linalg.norm(matrix)), rel=1e-6)
    assert exact.value < cheap.value < math.inf
    assert lipschitz_bound(module, image) == exact
