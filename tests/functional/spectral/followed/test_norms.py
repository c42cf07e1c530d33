"""Norms that are followed from step to step, against dense matrices, NumPy's SVD and frequencies on a fine grid."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_reg.functional.spectral.followed.gradient import add_gradient_, gradient_of, value_at
from lightning_reg.functional.spectral.followed.norms import FollowedNorms
from lightning_reg.functional.spectral.layers import Layer
from tests.functional.spectral.responses import sup_norm

CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(16, 24, 3, padding=1),
    "1d": lambda: nn.Conv1d(8, 12, 5),
    "1d long": lambda: nn.Conv1d(8, 12, 9),
    "3d": lambda: nn.Conv3d(4, 6, 3),
    "one output": lambda: nn.Conv2d(12, 1, 3),
    "one input": lambda: nn.Conv2d(1, 20, 5),
    "stride": lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1),
    "stride and dilation": lambda: nn.Conv2d(12, 12, 5, stride=2, dilation=2),
    "stride 3 of 4 taps": lambda: nn.Conv2d(6, 12, 4, stride=3),
    "dilation": lambda: nn.Conv2d(16, 16, 3, dilation=2, padding=2),
    "groups": lambda: nn.Conv2d(24, 24, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(24, 24, 5, groups=24),
    "transposed": lambda: nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1),
    "transposed groups": lambda: nn.ConvTranspose1d(12, 18, 3, groups=3),
    "patches": lambda: nn.Conv2d(3, 48, 4, stride=4),
    "1x1": lambda: nn.Conv2d(20, 30, 1),
    "transposed 1x1": lambda: nn.ConvTranspose2d(20, 30, 1),
    "uneven": lambda: nn.Conv2d(8, 8, (1, 5), stride=(1, 2)),
}
LINEAR = {
    "square": (60, 60),
    "wide": (20, 90),
    "tall": (90, 20),
    "few": (3, 40),
    "row": (1, 30),
    "column": (30, 1),
    "number": (1, 1),
}
kinds = pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)


def made(make, seed=0, kind="normal"):
    layer = make()
    weight = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
    layer.weight.detach().copy_(weight.abs() if kind == "positive" else weight)
    return layer


def layer_of(module, name="layer"):
    return Layer(name, module.weight.detach(), module)


def follow(module, steps=1, norms=None):
    norms = norms or FollowedNorms()
    for _ in range(steps):
        (found,) = norms.advance([layer_of(module)])
    return found


@kinds
@pytest.mark.parametrize("kind", ["normal", "positive"])
def test_a_convolution_has_the_norm_of_its_largest_response(make, kind):
    for seed in range(3):
        layer = made(make, seed, kind)
        truth = sup_norm(layer)

        assert truth * 0.98 <= follow(layer).sigma.item() <= truth * (1 + 1e-5)
        assert truth * 0.995 <= follow(layer, 12).sigma.item() <= truth * (1 + 1e-5)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: nn.Conv2d(4, 5, 3, padding=1, bias=False), (14, 14)),
        (lambda: nn.Conv2d(4, 5, 3, padding=1, stride=2, bias=False), (16, 16)),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), (14, 14)),
        (lambda: nn.Conv2d(4, 5, 3, padding=2, dilation=2, bias=False), (16, 16)),
        (lambda: nn.ConvTranspose2d(4, 5, 4, padding=1, stride=2, bias=False), (10, 10)),
        (lambda: nn.Conv1d(4, 5, 5, padding=2, dilation=3, stride=2, bias=False), (150,)),
    ],
    ids=["plain", "stride", "groups", "dilation", "transposed", "stride and dilation"],
)
def test_the_matrix_of_a_large_image_has_nearly_that_norm_and_no_larger_one(make, size):
    layer = made(make)
    count = layer.in_channels * math.prod(size)
    with torch.no_grad():
        matrix = layer(torch.eye(count).view(count, layer.in_channels, *size)).flatten(1)
    truth = np.linalg.norm(matrix.double().numpy(), 2)

    assert truth * (1 - 1e-4) <= follow(layer, 12).sigma.item() <= truth * 1.08


@pytest.mark.parametrize("shape", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_matrix_has_the_norm_of_its_largest_singular_value(shape, dtype):
    layer = nn.Linear(shape[1], shape[0], dtype=dtype)
    truth = np.linalg.norm(layer.weight.detach().double().numpy(), 2)
    found = follow(layer)

    assert found.sigma.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert truth * 0.999 <= found.sigma.item() <= truth * (1 + 1e-5)
    assert truth * (1 - 1e-5) <= follow(layer, 15).sigma.item() <= truth * (1 + 1e-5)


def test_a_kernel_counts_as_a_matrix_where_that_is_asked_for():
    for make in (lambda: nn.Conv2d(6, 8, 3), lambda: nn.ConvTranspose2d(6, 8, 3)):
        layer = made(make)
        rows = layer.weight.detach().transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight.detach()
        norms = FollowedNorms(as_matrices=True)
        found = follow(layer, 15, norms)
        u, s, vh = np.linalg.svd(rows.flatten(1).double().numpy(), full_matrices=False)

        assert found.sigma.item() == pytest.approx(s[0], rel=1e-5)
        expected = torch.from_numpy(np.outer(u[:, 0], vh[0])).float().view(rows.shape)
        expected = expected.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else expected
        torch.testing.assert_close(gradient_of(layer_of(layer), found), expected, atol=2e-3, rtol=0)


def train(model, inputs, targets, rate, bounds):
    """Train normalized layers with Adam; yield after each step."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = torch.randint(len(inputs), (64,), generator=generator)
        with torch.no_grad():
            scales = {name: 1 / bound() for name, bound in bounds.items()}
        optimizer.zero_grad()
        weights = {name: dict(model.named_parameters())[name] * scale for name, scale in scales.items()}
        output = torch.func.functional_call(model, weights, inputs[batch])
        nn.functional.cross_entropy(output, targets[batch]).backward()
        optimizer.step()
        yield


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_matrices_that_adam_trains_are_followed_within_one_percent(rate):
    torch.manual_seed(0)
    inputs = torch.randn(512, 64)
    targets = inputs[:, :10].argmax(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    layers = {f"{index}.weight": model[index] for index in (0, 2, 4)}

    def norm_of(layer):
        return np.linalg.norm(layer.weight.detach().numpy().astype(float), 2)

    norms, errors, gains = FollowedNorms(), [], []
    for _ in train(model, inputs, targets, rate, {k: lambda layer=v: norm_of(layer) for k, v in layers.items()}):
        found = norms.advance([layer_of(layer, name) for name, layer in layers.items()])
        errors += [norm_of(layer) / norm.sigma.item() - 1 for layer, norm in zip(layers.values(), found, strict=True)]
        gains += [norm.gain.item() for norm in found]

    assert max(errors) < 0.01
    assert min(errors) > -1e-5
    # The gain of the last round indicates the remaining error.
    assert all(error <= 0.002 + gain for error, gain in zip(errors, gains, strict=True))


@pytest.mark.parametrize("shape", [(256, 256), (64, 256)])
def test_a_norm_that_is_found_is_not_lost_again_while_the_matrix_hardly_moves(shape):
    # Many singular values are nearly as large as the largest one.
    layer = nn.Linear(*shape)
    norms = FollowedNorms()
    for _ in range(6):
        (found,) = norms.advance([layer_of(layer)])
        assert 1 - found.sigma.item() / torch.linalg.matrix_norm(layer.weight.detach().double(), 2).item() < 1e-3
        layer.weight.detach().mul_(1 + 1e-7)


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_convolutions_that_adam_trains_are_followed_within_two_percent(rate):
    torch.manual_seed(0)
    inputs = torch.randn(256, 2, 8, 8)
    targets = (inputs.mean((1, 2, 3)) > 0).long()
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 2),
    )
    layers = {f"{index}.weight": model[index] for index in (0, 2, 4)}
    norms, errors = FollowedNorms(), []
    for _ in train(
        model, inputs, targets, rate, {k: lambda layer=v: sup_norm(layer, points=12) for k, v in layers.items()}
    ):
        found = norms.advance([layer_of(layer, name) for name, layer in layers.items()])
        truths = [sup_norm(layer, points=16) for layer in layers.values()]
        errors += [truth / norm.sigma.item() - 1 for truth, norm in zip(truths, found, strict=True)]

    assert max(errors) < 0.02
    assert min(errors) > -1e-3  # the grid misses the largest, too


@pytest.mark.parametrize(
    ("make", "seed", "steps"),
    [
        (lambda: nn.Conv1d(64, 40, 5, bias=False), 0, 40),
        # A maximum between the followed frequencies grows from the fortieth step on.
        (lambda: nn.Conv2d(32, 48, 3, bias=False), 1, 65),
    ],
    ids=["sequence", "image"],
)
def test_a_convolution_that_learns_another_one_is_followed_within_two_percent(make, seed, steps):
    torch.manual_seed(seed)
    student = make()
    teacher = make()
    teacher.weight.detach().mul_(2)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    size = [20] if student.weight.ndim == 3 else [8, 8]
    norms, errors = FollowedNorms(), []
    for step in range(steps):
        inputs = torch.randn(32, student.in_channels, *size)
        optimizer.zero_grad()
        (student(inputs) - teacher(inputs).detach()).square().mean().backward()
        optimizer.step()
        sigma = follow(student, 1, norms).sigma.item()
        if step % 8 == 0:
            # Singular values of the teacher overtake those at the start.
            errors.append(1 - sigma / sup_norm(student, points=24))

    assert max(errors) < 0.02


@kinds
def test_random_changes_are_followed_within_two_percent(make):
    layer, norms = made(make), FollowedNorms()
    follow(layer, 1, norms)
    generator = torch.Generator().manual_seed(1)
    for step in range(40):
        change = torch.randn(layer.weight.shape, generator=generator) * layer.weight.detach().std()
        layer.weight.detach().add_(0.01 * change)
        sigma = follow(layer, 1, norms).sigma.item()
        if step % 4 == 0:
            assert sigma >= sup_norm(layer, points=16) * 0.98


@kinds
def test_the_gradient_belongs_to_the_norm(make):
    layer = made(make).double()
    norms = FollowedNorms()
    found = follow(layer, 40, norms)
    weight = layer.weight.detach()
    gradient = gradient_of(layer_of(layer), found)
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(2))
    direction += gradient * direction.norm() / gradient.norm()

    # Differences need the norm to many digits, also where the maximum is flat.
    above, below = (sup_norm(layer, weight + sign * 1e-5 * direction, refinements=12) for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((above - below) / 2e-5, rel=2e-2)
    leaf = weight.clone().requires_grad_()
    value = value_at(Layer("layer", leaf, layer), found)
    value.backward()
    assert value.item() == pytest.approx(found.sigma.item(), rel=1e-6)
    torch.testing.assert_close(leaf.grad, gradient)
    total = torch.ones_like(weight)
    add_gradient_(total, layer_of(layer), found, -2.0)
    torch.testing.assert_close(total, 1 - 2 * gradient)


def test_layers_of_one_shape_are_followed_together_as_they_are_alone():
    layers = [made(lambda: nn.Conv2d(6, 8, 3), seed) for seed in range(5)]
    linear = [nn.Linear(30, 20) for _ in range(5)]
    norms = FollowedNorms()
    named = [layer_of(layer, str(index)) for index, layer in enumerate([*layers, *linear])]
    for _ in range(3):
        together = norms.advance(named)

    for layer, found in zip([*layers, *linear], together, strict=True):
        alone = follow(layer, 3)
        torch.testing.assert_close(found.sigma, alone.sigma, rtol=1e-4, atol=0)


@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 9), lambda: nn.Conv2d(9, 12, 3)])
def test_a_saved_state_goes_on_bit_for_bit(make):
    layer = made(make)
    norms = FollowedNorms()
    follow(layer, 2, norms)
    saved = copy.deepcopy(norms.state())
    layer.weight.detach().mul_(torch.rand_like(layer.weight))
    expected = follow(layer, 3, norms)

    resumed = FollowedNorms()
    resumed.load(saved)
    found = follow(layer, 3, resumed)

    assert torch.equal(found.sigma, expected.sigma)
    assert torch.equal(found.right, expected.right)


@pytest.mark.parametrize("damage", ["nan", "shape", "missing"])
def test_a_damaged_state_starts_anew(damage):
    layer, norms = nn.Linear(12, 9), FollowedNorms()
    follow(layer, 1, norms)
    saved = norms.state()
    if damage == "nan":
        saved["layer"]["basis"][0, 0, 0] = math.nan
    elif damage == "shape":
        saved["layer"]["basis"] = torch.zeros(1, 2, 3)
    else:
        del saved["layer"]["turn"]
    norms = FollowedNorms()
    norms.load(saved)

    assert torch.equal(follow(layer, 1, norms).sigma, follow(layer).sigma)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(12, 9), lambda: nn.Conv2d(9, 12, 3), lambda: nn.Conv2d(9, 9, 3, groups=3)]
)
def test_weights_that_vanish_or_break_do_no_lasting_harm(make):
    layer, norms = made(make), FollowedNorms()
    weight = layer.weight.detach().clone()
    expected = follow(layer, 8).sigma.item()
    for value, sigma in ((0.0, 0.0), (math.nan, math.nan), (math.inf, math.nan)):
        layer.weight.detach().copy_(torch.zeros_like(weight) if value == 0 else weight)
        if value:
            layer.weight.detach()[0].fill_(value)
        found = follow(layer, 2, norms)
        np.testing.assert_equal(found.sigma.item(), sigma)
        if value == 0:
            assert not gradient_of(layer_of(layer), found).any()
        layer.weight.detach().copy_(weight)
        assert follow(layer, 8, norms).sigma.item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("scale", [1e-41, 1e-30, 1e30])
@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 9), lambda: nn.Conv2d(9, 12, 3)])
def test_tiny_and_huge_weights_have_their_norms(make, scale):
    layer = made(make)
    expected = follow(layer, 8)
    layer.weight.detach().mul_(scale)
    found = follow(layer, 8)

    assert found.sigma.item() == pytest.approx(expected.sigma.item() * scale, rel=1e-3)
    assert gradient_of(layer_of(layer), found).isfinite().all()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 0), lambda: nn.Linear(0, 5), lambda: nn.Conv2d(3, 0, 3)])
def test_an_empty_weight_has_norm_zero(make):
    layer = make()
    found = follow(layer, 2)

    assert found.sigma.item() == 0
    assert gradient_of(layer_of(layer), found).shape == layer.weight.shape


def test_zero_rows_and_columns_get_no_gradient():
    layer = made(lambda: nn.Conv2d(8, 12, 3))
    layer.weight.detach()[::3] = 0
    layer.weight.detach()[:, ::2] = 0
    gradient = gradient_of(layer_of(layer), follow(layer, 6))

    assert gradient.any()
    assert not gradient[::3].any()
    assert not gradient[:, ::2].any()


def test_a_direction_that_the_basis_does_not_know_is_found():
    layer, norms = nn.Linear(40, 40), FollowedNorms()
    layer.weight.detach().copy_(torch.diag(torch.cat([torch.full((20,), 3.0), torch.ones(20)])))
    follow(layer, 40, norms)
    layer.weight.detach()[30, 30] = 4

    assert follow(layer, 8, norms).sigma.item() == pytest.approx(4, rel=1e-3)


class Reads(TorchDispatchMode):
    """Counts what would wait for a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(
            part in name for part in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_linalg_eigh", "svd")
        ):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(12, 9), lambda: nn.Conv2d(9, 12, 3), lambda: nn.Conv2d(9, 9, 3, groups=3)]
)
def test_nothing_waits_for_the_device(make):
    layer, norms = made(make), FollowedNorms()
    with Reads() as reads:
        found = follow(layer, 2, norms)
        gradient_of(layer_of(layer), found, found.sigma)

    assert reads.names == []


def test_the_global_generator_is_left_alone_and_estimates_repeat():
    layer = made(lambda: nn.Conv2d(8, 12, 3))
    before = torch.get_rng_state()

    assert torch.equal(follow(layer, 2).sigma, follow(layer, 2).sigma)
    assert torch.equal(torch.get_rng_state(), before)
