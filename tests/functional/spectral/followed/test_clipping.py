"""Clipping that follows singular vectors from step to step, against NumPy's decomposition."""

import math

import numpy as np
import pytest
import torch

from lightning_reg.functional.spectral.followed.clipping import (
    are_inside,
    certified_shares,
    clip_exactly,
    clip_followed,
    clipping_bases,
)
from tests.functional.spectral.followed.test_norms import Reads


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_values(rows, columns, values, seed=0):
    """Return a matrix with such singular values."""
    u = np.linalg.qr(random(rows, len(values), seed=seed).double().numpy())[0]
    v = np.linalg.qr(random(columns, len(values), seed=seed + 1).double().numpy())[0]
    return torch.from_numpy(u * np.array(values) @ v.T).float()


def projection(matrix, bound):
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return u * s.clip(max=bound) @ vh


def norm(matrix):
    return np.linalg.norm(matrix.double().numpy(), 2)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (12, 12), (1, 9), (9, 1), (3, 100)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_few_values_above_the_bound_are_taken_off_exactly(shape, scale):
    count = min(*shape, 10)
    values = [3.0, 2.5, 2.0, 1.2][:count] + [0.9 - 0.08 * index for index in range(max(0, count - 4))]
    matrix = with_values(*shape, values) * scale
    bases = clipping_bases(matrix[None])
    clipped, sigma, bases, _, _ = clip_followed(matrix[None], scale, bases, rounds=3)

    np.testing.assert_allclose(clipped[0] / scale, projection(matrix / scale, 1.0), atol=2e-4)
    assert sigma.item() == pytest.approx(norm(matrix / scale) * scale, rel=1e-3)
    again, _, _, _, _ = clip_followed(clipped, scale, bases)
    assert norm(again[0] / scale) <= 1 + 1e-4


@pytest.mark.parametrize("shape", [(96, 96), (64, 256)])
def test_the_bound_holds_over_sixty_steps_of_noise(shape):
    matrix = random(*shape)
    matrix *= 1.0 / norm(matrix)
    bases, worst = clipping_bases(matrix[None]), 0.0
    for _ in range(4):
        _, _, bases, _, _ = clip_followed(matrix[None], 1.0, bases)
    for step in range(60):
        noise = random(*shape, seed=step + 1)
        matrix = matrix + 0.01 * noise * matrix.norm() / noise.norm()
        clipped, _, bases, _, _ = clip_followed(matrix[None], 1.0, bases)
        matrix = clipped[0]
        worst = max(worst, norm(matrix) - 1)

    assert worst < 1e-3


def test_matrices_inside_the_bound_stay_bit_for_bit_and_a_batch_keeps_its_members_apart():
    inside, outside, broken = with_values(20, 30, [0.9, 0.5]), with_values(20, 30, [2.0, 0.5]), random(20, 30)
    broken[3, 4] = math.nan
    batch = torch.stack([inside, outside, torch.zeros(20, 30), broken])
    bases = clipping_bases(batch)
    clipped, sigma, new, _, _ = clip_followed(batch, 1.0, bases, rounds=2)

    assert torch.equal(clipped[0], inside)
    np.testing.assert_allclose(clipped[1], projection(outside, 1.0), atol=1e-5)
    assert not clipped[2].any()
    assert clipped[3].isnan().sum() == 1
    np.testing.assert_allclose(sigma, [0.9, 2.0, 0, math.nan], rtol=1e-4)
    assert new.isfinite().all()


def test_rows_and_columns_of_zeros_stay_exactly_zero_over_many_steps():
    rows, columns = torch.arange(40) % 3 > 0, torch.arange(60) % 4 > 0
    matrix = random(40, 60) * rows[:, None] * columns
    bases = clipping_bases(matrix[None])
    for step in range(50):
        matrix = matrix + 0.05 * random(40, 60, seed=step + 1) * rows[:, None] * columns
        clipped, sigma, bases, _, _ = clip_followed(matrix[None], 5.0, bases)
        assert sigma.item() > 5
        assert not torch.equal(clipped[0], matrix)
        matrix = clipped[0]
        assert not matrix[~rows].any()
        assert not matrix[:, ~columns].any()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_an_empty_matrix_stays(shape):
    matrix = torch.empty(1, *shape)
    clipped, sigma, _, _, _ = clip_followed(matrix, 1.0, clipping_bases(matrix))

    assert clipped.shape == matrix.shape
    assert sigma.item() == 0


def test_nothing_waits_for_the_device():
    matrix = random(1, 20, 30)
    with Reads() as reads:
        clip_followed(matrix, 0.5, clipping_bases(matrix))

    assert reads.names == []


def test_more_above_the_bound_than_the_space_holds_is_doubtful():
    few, many = with_values(60, 80, [2.0, 0.5]), with_values(60, 80, [2.0 - 0.01 * index for index in range(40)])
    batch = torch.stack([few, many])
    bases = clipping_bases(batch)
    for _ in range(3):
        _, _, bases, _, is_doubtful = clip_followed(batch, 1.0, bases)

    assert is_doubtful.tolist() == [False, True]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_matrices_are_inside_up_to_a_hundredthousandth(scale):
    batch = torch.stack([with_values(40, 30, [value, 0.5]) for value in (0.999, 1.0, 1.0001, 3.0)]) * scale
    broken = batch[:1].clone()
    broken[0, 0, 0] = math.nan

    assert are_inside(batch, scale).tolist() == [True, True, False, False]
    assert are_inside(torch.zeros(1, 4, 5), 1.0).tolist() == [True]
    assert are_inside(broken, scale).tolist() == [False]


def test_a_decomposition_gives_the_nearest_matrix_inside_and_reads_no_value():
    matrix = random(12, 20)
    matrix[3], matrix[:, 5] = 0, 0
    with Reads() as reads:
        clipped = clip_exactly(matrix, 2.0)

    np.testing.assert_allclose(clipped, projection(matrix, 2.0), atol=1e-6)
    assert not clipped[3].any()
    assert not clipped[:, 5].any()
    assert [name for name in reads.names if "eigh" not in name] == []
    assert torch.equal(clip_exactly(matrix, 100.0), matrix)
    matrix[0, 0] = math.nan
    assert torch.equal(clip_exactly(matrix, 1.0).isnan(), matrix.isnan())


def test_the_least_share_of_the_bound_within_which_a_norm_is_is_certified():
    batch = torch.stack([with_values(40, 30, [value, 0.5]) for value in (0.3, 0.52, 0.91, 1.01)])

    assert certified_shares(batch * 7, 7.0, (0.5, 1.0, 0.9)).tolist() == pytest.approx([0.5, 0.9, 1.0, math.inf])


@pytest.mark.parametrize("shape", [(12, 3000), (3000, 12)])
@pytest.mark.parametrize("excess", [1.5, 50.0, 1e4])
def test_a_rough_decomposition_gives_nearly_the_nearest_matrix_inside(shape, excess):
    matrix = random(*shape)
    matrix[3], matrix[:, 5] = 0, 0
    bound = norm(matrix) / excess
    clipped = clip_exactly(matrix, bound, is_rough=True)

    np.testing.assert_allclose(clipped, projection(matrix, bound), atol=2e-3 * bound)
    assert norm(clipped) <= 1.002 * bound
    assert not clipped[3].any()
    assert not clipped[:, 5].any()
    matrix[0, 0] = math.nan
    assert torch.equal(clip_exactly(matrix, bound, is_rough=True).isnan(), matrix.isnan())
