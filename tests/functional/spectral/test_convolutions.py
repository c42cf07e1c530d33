"""Bounds and estimates of convolutions against the matrix that comes from applying torch's own layer to a basis."""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import nn

from lightning_reg.functional import conv_norm_bound, operator_norm_estimate
from lightning_reg.functional.spectral import frequencies, responses
from lightning_reg.functional.spectral.convolution import convolution_of
from tests.functional.spectral.layer_maps import layer_bound, layer_map

LAYERS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
LARGEST_KERNEL = {1: 7, 2: 7, 3: 3}
LARGEST_IMAGE = {1: 9, 2: 9, 3: 4}
LARGEST_MATRIX = 300


def basis_of(layer, size):
    count = layer.in_channels * math.prod(size)
    return torch.eye(count, dtype=layer.weight.dtype).view(count, layer.in_channels, *size)


@torch.no_grad()
def matrix_of(layer, size):
    return layer(basis_of(layer, size)).flatten(1).mT


def random_settings(draw, dims, transposed):
    kernel = tuple(draw.randint(1, LARGEST_KERNEL[dims]) for _ in range(dims))
    stride, dilation = (tuple(draw.randint(1, 3) for _ in range(dims)) for _ in range(2))
    settings = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "bias": False, "dtype": torch.float64}
    some = tuple(draw.randint(0, 4) for _ in range(dims))
    if transposed:
        extra = tuple(draw.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        return settings | {"padding": some, "output_padding": extra}
    half = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    mode = draw.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
    padding = draw.choice([some, some, half, "same", "valid"])
    return settings | {"padding": padding, "padding_mode": mode} | ({"stride": 1} if padding == "same" else {})


def random_layer(draw):
    """Return a layer and an image size that torch accepts, in float64."""
    while True:
        dims = draw.choice([1, 1, 2, 2, 3])
        transposed = draw.random() < 0.25
        groups = draw.choice([1, 1, 1, 2, 3])
        size = tuple(draw.randint(1, LARGEST_IMAGE[dims]) for _ in range(dims))
        channels = groups * draw.randint(1, 3), groups * draw.randint(1, 3)
        layer = LAYERS[dims, transposed](*channels, groups=groups, **random_settings(draw, dims, transposed))
        layer.requires_grad_(False)
        try:
            output = layer(torch.zeros(1, channels[0], *size, dtype=torch.float64))
        except RuntimeError:  # a kernel larger than the padded image, or padding larger than the image
            continue
        if 0 < output.numel() <= LARGEST_MATRIX and channels[0] * math.prod(size) <= LARGEST_MATRIX:
            break
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    layer.weight.normal_(generator=generator)
    kind = draw.choice(["normal", "positive", "constant"])  # the last two are furthest from the reshaped matrix
    if kind == "positive":
        layer.weight.abs_()
    elif kind == "constant":
        layer.weight.fill_(0.7)
    return layer, size


@pytest.mark.sweep(share=0.25)
@pytest.mark.parametrize("seed", range(12))
def test_bounds_and_estimates_hold_for_one_hundred_random_layers(seed, monkeypatch):
    draw = random.Random(seed)
    for _ in range(100):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
            layer, size = random_layer(draw)
            matrix = matrix_of(layer, size)
        truth = np.linalg.norm(matrix.numpy(), 2)
        weight = layer.weight.float()
        what = f"{layer} for {size}, seed {seed}"

        # Each bound: for any size, exact for small matrices, and from frequencies.
        assert layer_bound(layer, weight) >= truth, what
        small = layer_bound(layer, weight, size)
        assert truth <= small <= truth * (1 + 2e-5) + 1e-6, what
        with monkeypatch.context() as patch:
            patch.setattr(frequencies, "_DENSE", 0)
            assert layer_bound(layer, weight, size) >= truth, what
            patch.setattr(responses, "_LARGE", 0)  # the search that large layers take
            assert layer_bound(layer, weight, size) >= truth, what
            assert layer_bound(layer, weight) >= truth, what
        for images in (size, None):  # without frequencies
            described = convolution_of(layer, weight)
            assert frequencies.reshaped_bound(weight, described, images) >= truth, what

        apply, adjoint, shape = layer_map(layer, layer.weight, size)
        basis = basis_of(layer, size)
        torch.testing.assert_close(torch.stack([apply(image).flatten() for image in basis], 1), matrix, msg=what)
        output = apply(basis[0]).cos()  # any vector
        assert adjoint(output).shape == shape, what
        torch.testing.assert_close(adjoint(output).flatten(), matrix.mT @ output.flatten(), msg=what)

        for method in ("lanczos", "power"):
            for given in (adjoint, None):
                estimate, _ = operator_norm_estimate(
                    apply, shape, iterations=3, method=method, adjoint=given, dtype=torch.float64
                )
                assert estimate <= truth * (1 + 1e-12) + 1e-15, what


def sparse_norm(layer, size):
    """Return the norm as ARPACK finds it in double precision, from torch's layer and its gradient."""
    layer = layer.double()
    image = torch.zeros(1, layer.in_channels, *size, dtype=torch.float64, requires_grad=True)
    output = layer(image)

    def adjoint(vector):
        return torch.autograd.grad(output, image, torch.from_numpy(vector).view_as(output), retain_graph=True)[0]

    @torch.no_grad()
    def apply(vector):
        return layer(torch.from_numpy(vector).view_as(image))

    shape = output.numel(), image.numel()
    operator = LinearOperator(
        shape,
        matvec=lambda vector: apply(vector).flatten().numpy(),
        rmatvec=lambda vector: adjoint(vector).flatten().numpy(),
        dtype=np.float64,
    )
    return svds(operator, k=1, return_singular_vectors=False, tol=1e-7, random_state=0)[0]


# How far above the truth the bounds may be: with the input size, and for any size.
REALISTIC = {
    "3x3": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (16, 16), 1.01, 1.06),
    "small image": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (8, 8), 1.04, 1.09),
    "5x5": (nn.Conv2d(8, 16, 5, padding=2, bias=False), (16, 16), 1.03, 1.2),
    "stride": (nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), (16, 16), 1.01, 1.03),
    "dilation": (nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False), (16, 16), 1.05, 1.1),
    "depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), (20, 20), 1.02, 1.07),
    "patches": (nn.Conv2d(3, 32, 4, stride=4, bias=False), (24, 24), 1.0001, 1.0001),
    "transposed": (nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1, bias=False), (8, 8), 1.02, 1.03),
    "large image": (nn.Conv2d(3, 16, 3, padding=1, bias=False), (100, 100), 1.005, 1.04),
    "1d": (nn.Conv1d(8, 8, 9, padding=4, bias=False), (100,), 1.005, 1.1),
    "3d": (nn.Conv3d(8, 8, 3, padding=1, bias=False), (8, 8, 8), 1.08, 1.17),
    "circular": (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular", bias=False), (16, 16), 1.0001, 1.05),
    "circular with a stride": (
        nn.Conv2d(16, 16, 3, padding=1, stride=2, padding_mode="circular", bias=False),
        (16, 16),
        1.0001,
        3.3,
    ),
    "reflect": (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False), (16, 16), 2.01, 3.2),
    "replicate": (nn.Conv2d(16, 16, 3, padding=1, padding_mode="replicate", bias=False), (16, 16), 2.01, 3.2),
}


@pytest.mark.parametrize(("layer", "size", "sized", "any_size"), REALISTIC.values(), ids=REALISTIC)
def test_bounds_are_as_tight_as_documented(layer, size, sized, any_size):
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(0)).div_(layer.weight[0].numel() ** 0.5)
    weight = layer.weight.detach().float()
    truth = sparse_norm(layer, size)

    assert truth <= layer_bound(layer, weight, size) <= truth * sized
    assert truth <= layer_bound(layer, weight) <= truth * any_size
    apply, adjoint, shape = layer_map(layer, weight, size)
    estimate, _ = operator_norm_estimate(apply, shape, iterations=20, adjoint=adjoint)
    assert truth * 0.98 <= estimate <= truth * (1 + 1e-5)


@pytest.mark.parametrize(
    ("kernel", "dilation", "size"),
    [(2, 1, 3), (2, 1, 17), (3, 1, 3), (3, 1, 5), (3, 1, 9), (3, 1, 33), (5, 1, 5), (5, 1, 17), (3, 2, 5), (3, 2, 17)],
)
def test_the_written_limit_of_the_excess_holds_where_windows_lie_in_the_image(size, kernel, dilation, monkeypatch):
    monkeypatch.setattr(frequencies, "_DENSE", 0)
    windows = size - dilation * (kernel - 1)
    limit = 1 + dilation * (kernel - 1) / windows
    for seed in range(10):
        layer = nn.Conv2d(2, 2, kernel, padding=1, dilation=dilation, bias=False, dtype=torch.float64)
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
        truth = sparse_norm(layer, (size, size))
        assert truth <= layer_bound(layer, layer.weight, (size, size)) <= truth * limit * (1 + 2e-5)


def test_the_reshaped_matrix_of_a_positive_kernel_is_far_below_the_bound():
    # https://github.com/pytorch/pytorch/issues/99149
    weight = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))

    assert 5.5 < conv_norm_bound(weight, padding=3, input_size=32) / weight.norm() <= 7


@pytest.mark.parametrize("grid", [1, 4, 16, 64])
def test_a_grid_of_any_density_gives_an_upper_bound_and_a_finer_one_a_tighter_one(grid):
    weight = torch.randn(3, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    fine = conv_norm_bound(weight, grid=512)
    bound = conv_norm_bound(weight, grid=grid)

    assert fine * 0.9999 <= bound <= fine * 1.083**2
    if grid == 64:
        assert bound <= fine * 1.01


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, None),
        ({"padding": 1}, (12, 12)),
        ({"padding": 1}, (3, 3)),
        ({"stride": 2, "dilation": 2, "padding": 1}, None),
        ({"groups": 2}, None),
        ({"padding_mode": "circular", "padding": 1, "stride": 2}, (20, 20)),
        ({"transposed": True, "stride": 2}, (20, 20)),
    ],
)
def test_the_gradient_of_the_bound_belongs_to_its_value(settings, size):
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    if size == (12, 12):
        weight = weight.detach().repeat(2, 2, 1, 1).requires_grad_()

    def bound(entries):
        return conv_norm_bound(entries, input_size=size, **settings)

    torch.testing.assert_close(bound(weight).detach(), bound(weight.detach()))
    assert torch.autograd.gradcheck(bound, weight)


def test_a_large_layer_is_bounded_in_parts():
    weight = torch.randn(128, 128, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = conv_norm_bound(weight, grid=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "_ENTRIES", 1)
        parts = conv_norm_bound(weight, grid=8)

    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_bounds_of_tiny_and_of_huge_weights_are_right(scale):
    weight = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))

    for size in (None, 5, 500):
        expected = conv_norm_bound(weight, padding=1, input_size=size) * scale
        torch.testing.assert_close(conv_norm_bound(weight * scale, padding=1, input_size=size), expected)


def test_a_layer_whose_kernel_meets_no_pixel_has_norm_zero():
    layer = nn.Conv1d(1, 1, 2, padding=1, dilation=2, bias=False)

    assert layer_bound(layer, layer.weight, (1,)) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frequencies, "_DENSE", 0)
        assert layer_bound(layer, layer.weight, (1,)) == 0


@pytest.mark.parametrize(
    ("weight", "arguments", "error", "message"),
    [
        ((3, 3), {}, ValueError, "`weight` must have 3 to 5 dimensions, for a 1d, 2d or 3d convolution, got 2"),
        ((3, 3, 3), {"stride": 0}, ValueError, "`stride` must be a whole number >= 1, or 1 of them, got 0"),
        ((3, 3, 3), {"stride": (1, 1)}, ValueError, r"`stride` must be .* got \(1, 1\)"),
        ((3, 3, 3), {"dilation": 1.5}, TypeError, "`dilation` must be a whole number, .* got 1.5"),
        ((3, 3, 3), {"padding": -1}, ValueError, "`padding` must be a whole number >= 0"),
        ((3, 3, 3), {"padding": "full"}, TypeError, "`padding` must be a whole number, .* got 'full'"),
        ((3, 3, 3), {"padding": "same", "stride": 2}, ValueError, "`padding` must be a number for strided"),
        ((3, 3, 3), {"groups": 2}, ValueError, "`groups` must divide the 3 rows of `weight`, got 2"),
        ((3, 3, 3), {"padding_mode": "constant"}, ValueError, "`padding_mode` must be one of 'zeros'"),
        ((3, 3, 3), {"padding_mode": "reflect", "transposed": True}, ValueError, "must be 'zeros' for a transposed"),
        ((3, 3, 3), {"grid": 0}, ValueError, "`grid` must be a whole number >= 1"),
        ((3, 3, 3), {"input_size": 2}, ValueError, r"`input_size` must be one that the layer takes, got \(2,\)"),
        ((3, 3, 3), {"input_size": 0, "padding": 2}, ValueError, "`input_size` must be a whole number >= 1"),
        (
            (3, 3, 3),
            {"input_size": 2, "padding": 2, "padding_mode": "reflect"},
            ValueError,
            "`input_size` must be one that the layer takes",
        ),
    ],
)
def test_arguments_that_make_no_convolution_are_refused(weight, arguments, error, message):
    with pytest.raises(error, match=message):
        conv_norm_bound(torch.ones(weight), **arguments)


def test_a_complex_kernel_is_refused():
    with pytest.raises(TypeError, match=r"`weight` must be real, got torch\.complex64"):
        conv_norm_bound(torch.ones(2, 2, 3, dtype=torch.complex64))
