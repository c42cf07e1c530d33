"""Stable ranks, from NumPy's singular values."""

import numpy as np
import pytest
import torch

from lightning_reg.metrics import StableRank
from tests.metrics.layers import layers_of_every_kind, weights_by_name


def by_numpy(weight, *, is_transposed=False):
    weight = weight.swapaxes(0, 1) if is_transposed else weight  # of a transposed convolution, inputs come first
    values = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False)
    return (values**2).sum() / values[0] ** 2


@pytest.mark.parametrize("name", ["embedding", "lstm", "attention", "conv1", "conv2", "conv3", "up", "grouped"])
def test_it_is_the_least_over_the_layers_with_kernels_flattened_behind_their_outputs(name):
    module = layers_of_every_kind()[name]

    least = min(by_numpy(weight, is_transposed=name == "up") for weight in weights_by_name(module).values())
    assert StableRank()(module).item() == pytest.approx(least, rel=1e-5)
    assert StableRank(iterations=6)(module).item() == pytest.approx(least, rel=1e-4)


def test_a_network_has_the_stable_rank_of_its_narrowest_layer():
    weights = weights_by_name(layers_of_every_kind())
    ranks = [by_numpy(weight, is_transposed=name == "up") for name, weight in weights.items()]

    assert StableRank()(layers_of_every_kind()).item() == pytest.approx(min(ranks), rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.outer(torch.arange(1.0, 4.0), torch.arange(1.0, 6.0)), 1.0),
        (torch.eye(7), 7.0),
        (torch.zeros(3, 4), 0.0),
        (torch.full((3, 4), torch.nan), torch.nan),
        (torch.eye(5, dtype=torch.bfloat16), 5.0),
        (torch.complex(torch.eye(3), torch.eye(3)), 3.0),
        (1e-25 * torch.eye(4, dtype=torch.float64), 4.0),
    ],
)
def test_matrices_with_a_known_stable_rank(weight, expected):
    assert StableRank()(weight).item() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_it_is_never_above_the_rank_nor_below_1():
    generator = torch.Generator().manual_seed(0)
    for rank in range(1, 6):
        matrix = torch.randn(9, rank, generator=generator) @ torch.randn(rank, 6, generator=generator)
        assert 1 - 1e-5 <= StableRank()(matrix) <= rank * (1 + 1e-5)
