"""Norms of weights, computed by NumPy."""

import numpy as np
import pytest
import torch

from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.metrics import WeightNorm
from lightning_reg.metrics.base import measure
from tests.metrics.layers import every_layout, layers_of_every_kind, weights_by_name


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_is_the_norm_of_all_weights_as_one_vector(p, dtype):
    module = layers_of_every_kind().to(dtype)

    norm = WeightNorm(p)(module)

    entries = np.concatenate([weight.ravel() for weight in weights_by_name(module).values()])
    assert norm.item() == pytest.approx(np.linalg.norm(entries, p), rel=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_large_weights_lose_no_digits(p):
    weight = torch.ones(5000, 5000)  # a plain float32 sum of moduli stops at 2^24

    assert WeightNorm(p)(weight).item() == pytest.approx(25e6 ** (1 / p), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-41, 1e-30, 1e-20, 1e18, 1e30])
@pytest.mark.parametrize(
    ("shape", "p"), [((30, 40), 2), ((300, 400), 2), ((300, 400), 1), ((30, 40), 8), ((30, 40), 200)]
)
def test_it_is_right_for_weights_whose_powers_are_out_of_range(shape, p, scale):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(scale).float()
    metric = WeightNorm(p)

    norm = metric(list(weight.split(10)))

    entries = weight.double().numpy().ravel()
    largest = np.abs(entries).max()
    assert norm.item() == pytest.approx(np.linalg.norm(entries / largest, p) * largest, rel=1e-5, abs=1e-45)
    assert metric.compute().item() == pytest.approx(norm.item(), rel=1e-6, abs=1e-45)


def test_a_layer_whose_squares_are_out_of_range_leaves_the_norms_of_others_exact():
    generator = torch.Generator().manual_seed(0)
    sizes = {"tiny": (200, 200), "usual": (200, 301), "small": (20, 20), "huge": (300, 200), "zero": (150, 150)}
    scales = {"tiny": 1e-25, "usual": 1.0, "small": 1.0, "huge": 1e25, "zero": 0.0}
    weights = {name: scales[name] * torch.randn(size, generator=generator) for name, size in sizes.items()}

    norms, _ = measure(WeightNorm(), [Layer(name, weight) for name, weight in weights.items()])

    expected = [np.linalg.norm(weight.double().numpy().ravel()) for weight in weights.values()]
    assert norms.tolist() == pytest.approx(expected, rel=1e-6, abs=0)


@every_layout
def test_memory_layout_does_not_matter(layout):
    weight = torch.randn(40, 30, 4, 5, generator=torch.Generator().manual_seed(0))

    assert WeightNorm()(layout(weight)).item() == pytest.approx(np.linalg.norm(weight.numpy().ravel()), rel=1e-6)


def test_complex_weights_count_by_their_modulus():
    assert WeightNorm()(torch.tensor([[3 + 4j], [12j]])).item() == pytest.approx(13)


@pytest.mark.parametrize("p", [0.5, 0, -1])
def test_an_order_below_one_is_refused(p):
    with pytest.raises(ValueError, match="`p` must be in"):
        WeightNorm(p)


def test_an_infinite_order_is_refused():
    with pytest.raises(ValueError, match="`p` must be a finite number, got inf"):
        WeightNorm(torch.inf)
