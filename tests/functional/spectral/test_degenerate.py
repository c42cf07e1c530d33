"""Norms, bounds, gradients and clipping of weights with zero lines, of subnormal and of empty ones, against NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import (
    conv_norm_bound,
    jacobian_norm,
    lipschitz_bound,
    matrix_norm,
    operator_norm_estimate,
)
from lightning_reg.functional.spectral.matrices import clip_singular_values
from lightning_reg.metrics import SpectralNorm

SHAPES = [(1, 9), (9, 1), (30, 30), (72, 75), (64, 200), (200, 64), (96, 96), (128, 128)]
SHARES = [0.0, 0.05, 0.1, 0.3, 0.7]
PRUNED = ["rows", "columns", "both", "entries"]


def pruned(shape, share, kind, seed):
    """Return a random matrix in which about `share` of the lines (or of the entries) are left."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.rand(n, generator=generator) < share for n in shape)
    mask = {
        "rows": rows[:, None],
        "columns": columns[None],
        "both": rows[:, None] & columns[None],
        "entries": torch.rand(shape, generator=generator) < share,
    }[kind]
    return torch.randn(shape, generator=generator) * mask


def svd(matrix):
    return np.linalg.svd(matrix.detach().double().numpy(), full_matrices=False)


@pytest.mark.parametrize("kind", PRUNED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_of_a_pruned_matrix_and_its_gradient_are_right(shape, kind):
    for seed, share in itertools.product(range(6), SHARES):
        weight = pruned(shape, share, kind, seed).requires_grad_()
        u, s, vh = svd(weight)

        norm = matrix_norm(weight)
        norm.backward()

        np.testing.assert_allclose(norm.item(), s[0], rtol=5e-6)
        assert weight.grad.isfinite().all()
        if len(s) > 1 and s[0] > s[1] * 1.05:  # else one of many subgradients
            np.testing.assert_allclose(weight.grad, np.outer(u[:, 0], vh[0]), atol=1e-4)


@pytest.mark.parametrize("kind", PRUNED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pruned_matrices_of_one_batch_have_their_norms(kind, dtype):
    batch = torch.stack([pruned((60, 80), share, kind, seed) for seed in range(8) for share in SHARES]).to(dtype)
    batch.requires_grad_()

    norms = matrix_norm(batch)
    norms.sum().backward()

    np.testing.assert_allclose(norms.detach(), svd(batch)[1][:, 0], rtol=5e-6)
    assert batch.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["rows", "columns", "both", "entries"])
@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2}, {"dilation": 2, "stride": 2}, {"groups": 2}, {"transposed": True}], ids=str
)
@pytest.mark.parametrize("size", [(1,), (3,), (1, 1), (3, 3), (2, 5)], ids=str)
def test_the_bound_of_a_pruned_kernel_holds_and_is_tight_where_no_tap_overlaps(settings, size, kind):
    for seed, share in itertools.product(range(3), SHARES):
        channels = pruned((36, 24), share, kind, seed)
        weight = channels.view(36, 24, *(1,) * len(size)).repeat(1, 1, *size).requires_grad_()

        bound = conv_norm_bound(weight, grid=8, **settings)
        bound.backward()

        # Equal taps: at frequency 0 the response is their sum, over phases the root of the sum of squares.
        groups = settings.get("groups", 1)
        truth = max(svd(part)[1][0] for part in channels.chunk(groups))
        # The common factor of stride and dilation goes into neither.
        step = settings.get("stride", 1) // math.gcd(settings.get("stride", 1), settings.get("dilation", 1))
        counts = [[len(range(phase, k, step)) for phase in range(step)] for k in size]
        truth *= math.prod(math.hypot(*count) for count in counts)
        assert truth * (1 - 1e-7) <= bound.item() <= truth * 1.2 * 1.2
        assert weight.grad.isfinite().all()


@pytest.mark.parametrize("share", SHARES)
def test_a_pruned_layer_of_a_known_image_size_has_the_norm_of_its_matrix(share):
    layer = nn.Conv2d(40, 50, 3, padding=1, bias=False).requires_grad_(False)
    layer.weight.mul_(pruned((50, 40), share, "both", 0)[..., None, None])
    matrix = layer(torch.eye(40 * 4).view(-1, 40, 2, 2)).flatten(1)
    truth = svd(matrix)[1][0]

    assert truth * (1 - 1e-6) <= conv_norm_bound(layer.weight, padding=1, input_size=2) <= truth * (1 + 2e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-37, 1e-39, 1e-41, 3e-44])
def test_norms_of_weights_that_have_decayed_to_subnormal_numbers_are_right(scale):
    weight = torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(scale).float()
    u, s, vh = svd(weight)
    linear, conv = nn.Linear(20, 30, bias=False), nn.Conv2d(20, 30, 1, bias=False)
    for layer in (linear, conv):
        layer.weight.detach().copy_(weight.view_as(layer.weight))
    image = torch.zeros(1, 20, 32, 32)

    np.testing.assert_allclose(matrix_norm(weight).item(), s[0], rtol=1e-5, atol=1e-45)
    for bound in (
        conv_norm_bound(conv.weight.detach()).item(),
        conv_norm_bound(conv.weight.detach(), input_size=32).item(),
        lipschitz_bound(conv, image).value,
        lipschitz_bound(linear, torch.zeros(1, 20)).value,
        SpectralNorm()(conv).item(),
    ):
        assert s[0] <= bound <= s[0] * 1.001 + 3e-45
    for norm, parameter in ((matrix_norm(linear.weight), linear.weight), (conv_norm_bound(conv.weight), conv.weight)):
        norm.backward()
        np.testing.assert_allclose(parameter.grad.flatten(1), np.outer(u[:, 0], vh[0]), atol=1e-4)


@pytest.mark.parametrize("scale", [1e30, 1e37])
def test_the_bound_of_a_huge_kernel_does_not_overflow_before_its_norm_does(scale):
    kernel = torch.ones(1, 1, 5) * scale

    np.testing.assert_allclose(conv_norm_bound(kernel, grid=512).item(), 5 * scale, rtol=1e-4)


def test_a_subnormal_weight_in_float64_has_its_norm():
    weight = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tiny = weight * 1e-310

    np.testing.assert_allclose(matrix_norm(tiny).item() / 1e-310, svd(weight)[1][0], rtol=1e-6)
    np.testing.assert_allclose(matrix_norm(weight * 1e305).item() / 1e305, svd(weight)[1][0], rtol=1e-12)


def test_nan_from_lapack_is_mended(monkeypatch):
    true = torch.linalg.eigvalsh, torch.linalg.eigh

    def values(matrix):
        found = true[0](matrix)
        return found * torch.nan if matrix.real.dtype == torch.float32 else found

    def vectors(matrix):
        found, basis = true[1](matrix)
        return (found, basis * torch.nan) if matrix.real.dtype == torch.float32 else (found, basis)

    monkeypatch.setattr(torch.linalg, "eigvalsh", values)
    monkeypatch.setattr(torch.linalg, "eigh", vectors)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    u, s, vh = svd(weight)

    np.testing.assert_allclose(matrix_norm(weight.detach()).item(), s[0], rtol=2e-6)
    np.testing.assert_allclose(conv_norm_bound(weight.detach()[..., None]).item(), s[0], rtol=2e-5)
    matrix_norm(weight).backward()
    np.testing.assert_allclose(weight.grad, np.outer(u[:, 0], vh[0]), atol=1e-6)


def test_nan_from_the_decomposition_is_mended(monkeypatch):
    true = torch.linalg.svd

    def fails(matrix, **settings):
        u, s, vh = true(matrix, **settings)
        return (u, s * torch.nan, vh) if matrix.dtype == torch.float32 else (u, s, vh)

    monkeypatch.setattr(torch.linalg, "svd", fails)
    matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)

    np.testing.assert_allclose(clip_singular_values(matrix, 1.5), u * s.clip(max=1.5) @ vh, atol=1e-6)


@pytest.mark.parametrize("is_far", [False, True])
@pytest.mark.parametrize("kind", ["rows", "columns", "both"])
def test_clipping_is_the_projection_and_keeps_zero_lines_exactly_zero(kind, is_far):
    for seed, shape in itertools.product(range(3), SHAPES):
        matrix = pruned(shape, 0.4, kind, seed)
        u, s, vh = svd(matrix)
        bound = max(float(s[0]) * 0.4, 0.1)

        clipped = clip_singular_values(matrix, bound, is_far=is_far)

        np.testing.assert_allclose(clipped, u * s.clip(max=bound) @ vh, atol=3e-5)
        assert not clipped[~matrix.any(1)].any()
        assert not clipped[:, ~matrix.any(0)].any()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_weights_have_norm_zero_everywhere(shape):
    weight = torch.empty(shape, requires_grad=True)
    kernel = torch.empty(*shape, 3, 3, requires_grad=True)

    for norm, leaf in ((matrix_norm(weight), weight), (conv_norm_bound(kernel, padding=1), kernel)):
        norm.backward()
        assert norm.item() == 0
        assert leaf.grad.shape == leaf.shape
    assert conv_norm_bound(kernel, padding=1, input_size=4).item() == 0
    assert clip_singular_values(weight.detach(), 1.0).shape == shape
    estimate, state = operator_norm_estimate(lambda x: weight.detach() @ x, shape[1:], iterations=3)
    assert estimate.item() == 0
    assert state.shape == shape[1:]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_a_layer_without_outputs_is_measured_beside_others():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 0))

    assert lipschitz_bound(model[1], torch.zeros(1, 3)).value == 0
    assert jacobian_norm(model, torch.ones(2, 4)).tolist() == [0, 0]
    assert jacobian_norm(model[1], torch.ones(2, 3)).tolist() == [0, 0]
    for metric in (SpectralNorm(), SpectralNorm(iterations=5)):
        np.testing.assert_allclose(metric(model).item(), svd(model[0].weight)[1][0], rtol=1e-5)
