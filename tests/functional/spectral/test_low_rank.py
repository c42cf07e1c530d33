"""`factorize`: the same outputs from fewer parameters, and nothing silently left as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers.pytorch_utils import Conv1D

from lightning_reg.functional import factorize

LAYERS = {
    "linear": (lambda: nn.Linear(20, 30), (3, 20)),
    "linear without bias": (lambda: nn.Linear(30, 20, bias=False), (2, 3, 30)),
    "Conv1D of transformers": (lambda: Conv1D(20, 30), (3, 30)),
    "conv1d": (lambda: nn.Conv1d(9, 8, 5, padding="same", padding_mode="circular"), (2, 9, 11)),
    "conv2d": (lambda: nn.Conv2d(6, 8, (3, 2), stride=2, padding=1, dilation=(2, 1)), (2, 6, 11, 9)),
    "conv2d of one image": (lambda: nn.Conv2d(6, 8, 3, bias=False), (6, 11, 9)),
    "conv3d": (lambda: nn.Conv3d(6, 8, 3), (2, 6, 5, 4, 5)),
    "groups": (lambda: nn.Conv2d(12, 16, 3, groups=2), (2, 12, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(12, 8, 3, 2, padding=1, output_padding=1, dilation=2), (2, 12, 5, 5)),
    "transposed groups": (lambda: nn.ConvTranspose1d(12, 16, 3, groups=2), (2, 12, 5)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def rows_first(layer, weight):
    """Return views of the matrices of a layer, one for each group of channels, with a row for each output."""
    if isinstance(layer, Conv1D):
        return [weight.T]
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return [block.transpose(0, 1) for block in weight.chunk(layer.groups)]
    return weight.chunk(getattr(layer, "groups", 1))


def lower_rank_(layer, rank):
    """Leave of each of its matrices the `rank` largest singular values, as NumPy finds them."""
    with torch.no_grad():
        for block in rows_first(layer, layer.weight):
            u, s, vh = np.linalg.svd(block.flatten(1).double().numpy(), full_matrices=False)
            block.copy_(torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank]).view(block.shape))
    return layer


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def assert_same_outputs(actual, expected, shape, rtol=1e-6, dtype=torch.float32):
    inputs = torch.randn(shape, dtype=dtype)
    found, wanted = actual(inputs), expected(inputs)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert (found - wanted).abs().double().norm() <= rtol * wanted.abs().double().norm()


@every_layer
@pytest.mark.parametrize("rank", [1, 2])
def test_a_layer_of_low_rank_becomes_two_smaller_ones_with_the_same_outputs(kind, rank):
    make, shape = LAYERS[kind]
    layer = lower_rank_(make(), rank)

    found = factorize(layer)

    assert isinstance(found, nn.Sequential)
    blocks = rows_first(layer, layer.weight)
    weights = rank * sum(block.shape[0] + block[0].numel() for block in blocks)
    assert count(found) == weights + (0 if layer.bias is None else layer.bias.numel()) < count(layer)
    assert_same_outputs(found, layer, shape)


@every_layer
def test_of_a_layer_of_zeros_the_bias_alone_is_left(kind):
    make, shape = LAYERS[kind]
    layer = lower_rank_(make(), 0)

    found = factorize(layer)

    assert count(found) == (0 if layer.bias is None else layer.bias.numel())
    assert_same_outputs(found, layer, shape, rtol=0.0)
    again = factorize(layer)
    again.load_state_dict(found.state_dict())


@every_layer
def test_a_layer_stays_where_two_would_have_more_parameters(kind):
    layer = LAYERS[kind][0]()

    found = factorize(layer)

    assert type(found) is type(layer)
    assert found is not layer
    torch.testing.assert_close(found.state_dict(), layer.state_dict(), rtol=0, atol=0)


def test_the_largest_rank_that_saves_is_used_and_no_larger_one():
    # 4 (9 + 9) = 72 < 81 <= 5 (9 + 9).
    assert isinstance(factorize(lower_rank_(nn.Linear(9, 9), 4)), nn.Sequential)
    assert isinstance(factorize(lower_rank_(nn.Linear(9, 9), 5)), nn.Linear)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_other_precisions(dtype):
    left, right = torch.randn(40, 2, dtype=torch.float64), torch.randn(2, 30, dtype=torch.float64)
    layer = nn.Linear(30, 40, dtype=dtype)
    layer.weight.data = (left @ right).to(dtype)  # rounded: in half precision the rank is low no more

    found = factorize(layer)

    assert count(found) == 2 * 70 + 40
    assert {parameter.dtype for parameter in found.parameters()} == {dtype}
    rtol = 3 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-6
    assert_same_outputs(found, layer, (9, 30), rtol, dtype)


def test_a_tolerance_is_the_relative_error_of_a_weight():
    layer = nn.Linear(30, 40, bias=False)
    values = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)
    errors = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1]) / np.linalg.norm(values)

    for rank in (1, 5, 9):
        found = factorize(layer, tolerance=errors[rank] * (1 + 1e-9))
        assert [part.out_features for part in found] == [rank, 40]
        weight = found[1].weight @ found[0].weight
        assert ((weight - layer.weight).norm() / layer.weight.norm()).item() == pytest.approx(errors[rank], rel=1e-4)


def test_the_network_is_copied_wherever_it_holds_a_layer_and_settings_stay():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([lower_rank_(nn.Linear(20, 20), 2), nn.Linear(20, 20)])
            self.again = self.layers[0]
            self.listed = [self.layers[0]]  # torch does not see it

        def forward(self, x):
            return self.listed[0](self.again(self.layers[1](self.layers[0](x))))

    network = Network().eval()
    network.layers[0].weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())

    found = factorize(network)

    assert_same_outputs(found, network, (3, 20))
    assert isinstance(network.layers[0], nn.Linear)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert found.again is found.layers[0] is found.listed[0]
    assert not any(part.training for part in found.modules())
    assert [parameter.requires_grad for parameter in found.again.parameters()] == [False, False, True]
    assert not {id(parameter) for parameter in found.parameters()} & {id(own) for own in network.parameters()}
    assert count(found) == 2 * 40 + 20 + 420


def test_random_numbers_stay_as_they_were():
    layer = lower_rank_(nn.Conv2d(8, 8, 3), 1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    factorize(layer)

    assert torch.equal(torch.rand(3), expected)


def low_rank():
    return lower_rank_(nn.Linear(20, 20), 2)


def attention():
    module = nn.MultiheadAttention(20, 2, batch_first=True)
    lower_rank_(module.out_proj, 2)
    return module


def encoder_layer():
    module = nn.TransformerEncoderLayer(20, 2, 20, batch_first=True).eval()
    lower_rank_(module.linear1, 2)
    return module


def named_twice():
    block = encoder_layer()
    return nn.ModuleDict({"first": block.linear1, "block": block})


def tied():
    module = nn.ModuleDict({"head": low_rank(), "embedding": nn.Embedding(20, 20)})
    module["embedding"].weight = module["head"].weight
    return module


def hooked():
    layer = low_rank()
    layer.register_forward_hook(lambda *_: None)
    return layer


def normed():
    return parametrizations.spectral_norm(low_rank())


KEPT = {
    "attention": (attention, "'out_proj'.*NonDynamicallyQuantizableLinear"),
    "encoder layer": (encoder_layer, "'linear1'.*TransformerEncoderLayer"),
    "encoder layer under another name": (named_twice, "'first'.*TransformerEncoderLayer"),
    "tied": (tied, "'head'.*Give each module its own"),
    "hooked": (hooked, "hooks, for example from pruning. Remove"),
    "pruned": (lambda: prune.random_unstructured(low_rank(), "weight", 0.0), "Remove them first"),
    "parametrized": (normed, "remove_parametrizations"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_others_use_stays_and_a_warning_names_it(kind):
    make, message = KEPT[kind]
    module = make()
    before = copy.deepcopy(module.state_dict())

    with pytest.warns(UserWarning, match=message):
        found = factorize(module)

    torch.testing.assert_close(found.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert type(found) is type(module)


def test_a_transformer_works_afterwards():
    module = encoder_layer()
    with pytest.warns(UserWarning, match="linear1"):
        found = factorize(module)
    inputs = torch.randn(2, 3, 20)

    with torch.no_grad():  # the fast path of evaluation reads weights past layers
        torch.testing.assert_close(found(inputs), module(inputs))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_refused_with_the_remedy(wrap):
    with pytest.raises(
        ValueError, match=r"`module` must be the plain network, got \w+. Pass the network in its `\.\w+`"
    ):
        factorize(wrap(nn.Linear(20, 20)))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_weights_whose_squares_are_out_of_range_keep_their_rank(size):
    layer = nn.Linear(20, 20, bias=False, dtype=torch.float64)
    direction = torch.linspace(-1, 1, 20, dtype=torch.float64)
    layer.weight.data = size * torch.outer(direction, direction)

    outputs = factorize(layer)(direction) / size

    np.testing.assert_allclose(outputs.detach().numpy(), (direction * direction.dot(direction)).numpy(), rtol=1e-6)


def test_weights_that_are_not_finite_stay():
    layer = nn.Linear(20, 20)
    layer.weight.data[0, 0] = torch.nan

    assert isinstance(factorize(layer), nn.Linear)
    assert isinstance(factorize(nn.LazyLinear(3)), nn.LazyLinear)
