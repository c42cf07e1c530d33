"""Largest singular values, from NumPy for matrices and from SciPy for convolutions."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import nn

from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.metrics import SpectralNorm
from lightning_reg.metrics.base import measure
from tests.functional.spectral.responses import sup_norm
from tests.metrics.layers import layers_of_every_kind, weights_by_name


def norm_on_images(layer, size):
    """Return the largest singular value of a convolution without its bias, on images of `size` pixels a side."""
    shape = (layer.in_channels, *[size] * len(layer.kernel_size))
    layer = layer.double()
    bias, layer.bias = layer.bias, None

    def product(vector):
        return layer(torch.tensor(vector).view(1, *shape)).detach().flatten().numpy()

    def adjoint(vector):
        image = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
        output = layer(image)
        output.backward(torch.tensor(vector).view_as(output))
        return image.grad.flatten().numpy()

    outputs = len(product(np.zeros(np.prod(shape))))
    operator = LinearOperator((outputs, int(np.prod(shape))), product, adjoint, dtype=np.float64)
    (largest,) = svds(operator, k=1, return_singular_vectors=False, rng=0)
    layer.bias = bias
    return largest


CONVOLUTIONS = ["conv1", "conv2", "conv3", "up", "grouped"]
MATRICES = ["embedding", "lstm", "attention"]


@pytest.mark.parametrize("name", MATRICES)
def test_it_is_the_largest_singular_value_of_any_matrix_of_a_module(name):
    module = layers_of_every_kind()[name]

    largest = max(np.linalg.norm(weight, 2) for weight in weights_by_name(module).values())
    assert SpectralNorm()(module).item() == pytest.approx(largest, rel=1e-5)
    assert SpectralNorm(iterations=4)(module).item() == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_truth_about_a_convolution_lies_between_the_estimate_and_the_bound(name):
    layer = layers_of_every_kind()[name]
    bound = SpectralNorm()(layer).item()
    estimate = SpectralNorm(iterations=5, input_size=8)(layer).item()

    truth = norm_on_images(layer, 8)
    assert 0.98 * truth <= estimate <= truth * (1 + 1e-5)
    assert truth <= bound <= 1.5 * truth


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_estimate_for_any_size_holds_for_images_of_any_size(name):
    layer = layers_of_every_kind()[name]
    metric = SpectralNorm(iterations=5, input_size="any")

    first, again = metric(layer).item(), metric(layer).item()

    truth = sup_norm(layer)
    assert 0.98 * truth <= first <= truth * (1 + 1e-4)  # the truth comes from a grid
    assert 0.99 * truth <= again <= truth * (1 + 1e-4)


def test_a_kernel_alone_has_the_norm_of_the_reshaped_matrix():
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    assert SpectralNorm()(kernel).item() == pytest.approx(np.linalg.norm(kernel.flatten(1).numpy(), 2), rel=1e-5)


@pytest.mark.parametrize("metric", [SpectralNorm(), SpectralNorm(iterations=4)])
def test_complex_matrices(metric):
    matrix = torch.randn(4, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))

    assert metric(matrix).item() == pytest.approx(np.linalg.norm(matrix.numpy(), 2), rel=1e-5)


def test_a_vector_is_one_column():
    assert SpectralNorm()(torch.tensor([3.0, 4.0])).item() == pytest.approx(5)


def test_estimates_follow_weights_that_move():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(300, 200, generator=generator), torch.randn(64, 64, generator=generator)]
    weights += [torch.randn(20, 30, generator=generator) for _ in range(5)]
    metric = SpectralNorm(iterations=5)

    for _ in range(20):
        weights = [weight + 0.03 * torch.randn(weight.shape, generator=generator) for weight in weights]
        metric.reset()
        estimate, truth = metric(weights).item(), max(np.linalg.norm(weight.numpy(), 2) for weight in weights)
        assert 0.99 * truth <= estimate <= truth * (1 + 1e-5)


@pytest.mark.parametrize("input_size", [16, "any"])
def test_each_layer_has_its_own_estimate_whatever_the_order_of_shapes(input_size):
    shapes = [(3, 5), (6, 6), (2, 2, 3), (5, 3), (3, 5), (4, 1, 2), (6, 6)]
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(index)) for index, shape in enumerate(shapes)]
    layers = [Layer(str(index), weight, is_stack=weight.ndim > 2) for index, weight in enumerate(weights)]
    convolution = nn.Conv1d(1, 1, 3, bias=False)
    layers.insert(2, Layer("convolution", convolution.weight.detach(), convolution))

    found, _ = measure(SpectralNorm(iterations=6, input_size=input_size), layers)

    expected = [max(np.linalg.norm(matrix, 2) for matrix in np.atleast_3d(weight.numpy().T).T) for weight in weights]
    assert [*found[:2], *found[3:]] == pytest.approx(expected, rel=1e-4)


def test_the_global_random_generator_is_left_alone():
    state = torch.get_rng_state()

    SpectralNorm(iterations=5)(layers_of_every_kind())

    assert torch.equal(torch.get_rng_state(), state)


def test_extreme_and_zero_weights():
    for scale in (1e-25, 1e25):
        for metric in (SpectralNorm(), SpectralNorm(iterations=3)):
            assert metric(scale * torch.eye(3)).item() == pytest.approx(scale, rel=1e-4)
    assert SpectralNorm(iterations=3)(torch.zeros(3, 3)).item() == 0


def test_one_bad_weight_does_not_spoil_the_estimates_of_others():
    metric = SpectralNorm(iterations=3)
    good, bad = torch.eye(3), torch.full((3, 3), torch.inf)

    for _ in range(2):
        values = metric.statistics([Layer("good", good), Layer("bad", bad)]).flatten()
        assert values[0].item() == pytest.approx(1)
        assert not values[1].isfinite()
    assert metric.statistics([Layer("good", good), Layer("bad", 2 * good)]).flatten().tolist() == pytest.approx([1, 2])


@pytest.mark.parametrize("value", [0, -1])
def test_bad_arguments_are_refused(value):
    with pytest.raises(ValueError, match=f"`iterations` must be an int >= 1, got {value}"):
        SpectralNorm(iterations=value)
    with pytest.raises(TypeError, match=r"`input_size` must be an int >= 1, got 1\.5"):
        SpectralNorm(input_size=1.5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_a_tied_weight_counts_once():
    from lightning_reg.metrics import Sparsity, WeightNorm

    module = Tied()

    assert WeightNorm()(module).item() == pytest.approx(module.first.weight.norm().item())
    assert Sparsity()(module).item() == 0
