"""The search for the largest norm of large responses, against singular values at every frequency by NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import conv_norm_bound
from tests.functional.spectral.responses import sup_norm

KINDS = ("normal", "positive", "equal taps", "one tap", "pruned", "tiny", "zero")


def kernel_of(kind, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(shape, generator=generator)
    if kind == "positive":
        return kernel.abs()
    if kind == "equal taps":  # all frequencies but 0 are far below, some exactly 0
        return kernel[..., :1, :1].expand(shape).contiguous()
    if kind == "one tap":  # all frequencies are equal
        return kernel * nn.functional.one_hot(torch.tensor(4), 9).view(3, 3)
    if kind == "pruned":
        return kernel * (torch.rand(shape[0], 1, 1, 1, generator=generator) < 0.1)
    return kernel * {"normal": 1, "tiny": 1e-30, "zero": 0}[kind]


def wave_kernel(shape, size, seed):
    """Return a kernel whose response is largest at one random frequency of the ring, and complex there."""
    generator = np.random.default_rng(seed)
    u, v = (generator.normal(size=(n, 2)) @ [1, 1j] for n in shape[:2])
    turns = generator.integers(1, size, 2) @ np.indices(shape[2:]).reshape(2, -1) / size
    waves = np.exp(2j * np.pi * turns).reshape(shape[2:])
    wave = np.einsum("o,i,xy->oixy", u, v, waves).real
    return torch.from_numpy(wave + generator.normal(size=shape)).float()


def ring_norm(kernel, size):
    """Return the norm of the circular convolution by Sedghi et al., 2019."""
    responses = np.fft.fft2(kernel.double().numpy(), (size, size)).transpose(2, 3, 0, 1)
    return np.linalg.svd(responses, compute_uv=False)[..., 0].max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(72, 80, 3, 3), (80, 72, 3, 3)], ids=["wide", "tall"])
@pytest.mark.parametrize("size", [3, 8])
def test_the_norm_of_a_large_circular_layer_is_exact(kind, shape, size):
    kernel = kernel_of(kind, shape)

    bound = conv_norm_bound(kernel, padding=1, padding_mode="circular", input_size=size).item()

    truth = ring_norm(kernel, size)
    assert truth <= bound <= truth * (1 + 3e-5)


@pytest.mark.parametrize("seed", range(10))
def test_the_largest_of_very_different_frequencies_is_found(seed):
    shape = (66, 70, 3, 3) if seed % 2 else (70, 66, 3, 3)
    kernel = wave_kernel(shape, 7, seed)

    bound = conv_norm_bound(kernel, padding=1, padding_mode="circular", input_size=7).item()

    truth = ring_norm(kernel, 7)
    assert truth <= bound <= truth * (1 + 3e-5)


@pytest.mark.parametrize(
    ("layer", "taps"),
    [
        (nn.Conv2d(72, 80, 3, bias=False), (3, 3)),
        (nn.Conv2d(80, 72, 3, bias=False), (3, 3)),
        (nn.Conv2d(20, 72, 3, stride=2, bias=False), (2, 2)),
        (nn.Conv2d(72, 72, 3, stride=2, dilation=2, bias=False), (3, 3)),
        (nn.Conv2d(33, 150, (4, 1), stride=(2, 1), bias=False), (2, 1)),  # more rows than columns in two phases
        (nn.Conv1d(72, 72, 30, bias=False), (30,)),  # more pairs of taps than frequencies are worth
        (nn.Conv1d(72, 72, 9, stride=4, bias=False), (3,)),
        (nn.ConvTranspose1d(72, 80, 5, bias=False), (5,)),
    ],
    ids=str,
)
def test_the_bound_of_a_large_layer_is_above_its_norm_by_the_grid_at_most(layer, taps):
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))

    bound = conv_norm_bound(
        layer.weight.detach(), stride=layer.stride, dilation=layer.dilation, transposed=layer.transposed
    )

    truth = sup_norm(layer)
    points = [max(16, 4 * (k - 1)) for k in taps]
    limit = math.prod(1 / math.cos(math.pi * (k - 1) / 2 / n) for k, n in zip(taps, points, strict=True))
    assert truth * (1 - 1e-6) <= bound.item() <= truth * limit * (1 + 3e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_a_large_layer_belongs_to_the_frequency_with_the_largest_norm(seed):
    kernel = kernel_of("normal", (70, 66, 3, 3), seed).double().requires_grad_()

    conv_norm_bound(kernel, padding=1, padding_mode="circular", input_size=5).backward()

    responses = np.fft.fft2(kernel.detach().numpy(), (5, 5))
    norms = {at: np.linalg.norm(responses[..., *at], 2) for at in itertools.product(range(5), range(5))}
    best = max(norms, key=norms.get)
    u, _, vh = np.linalg.svd(responses[..., *best])
    for tap in itertools.product(range(3), range(3)):
        wave = np.exp(-2j * np.pi * np.dot(best, tap) / 5)
        expected = (np.outer(u[:, 0].conj(), vh[0].conj()) * wave).real
        np.testing.assert_allclose(kernel.grad[..., *tap], expected, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_large_layer_that_is_not_finite_has_the_bound_nan(value):
    kernel = kernel_of("normal", (70, 66, 3, 3))
    kernel[1, 2, 0, 1] = value

    assert conv_norm_bound(kernel).isnan()


def test_few_frequencies_of_a_large_layer_are_eigenvalue_problems(monkeypatch):
    problems = []
    true = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda grams: problems.append(len(grams)) or true(grams))

    conv_norm_bound(kernel_of("normal", (70, 70, 3, 3)))

    assert 1 <= sum(problems) <= 13  # of 130
