"""Spectral normalization of every kind of layer."""

import copy

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_reg import Select, SpectralConstraint, SpectralNormalization, SpectralNormPenalty
from lightning_reg.metrics import SpectralNorm
from tests.callbacks.spectral.norms import norm as largest_response


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Plain(LightningModule):
    """Any network, trained to give ones."""

    def __init__(self, network, *inputs, lr=0.02):
        super().__init__()
        self.network, self.inputs, self.lr = network, inputs, lr

    def training_step(self, batch, batch_idx):
        outputs = self.network(*self.inputs)
        return ((outputs[0] if isinstance(outputs, tuple) else outputs) - 1).square().mean()

    def train_dataloader(self):
        return range(30)

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), lr=self.lr)


def train(trainer_of, network, *inputs, callback=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trainer_of(callback or SpectralNormalization(), max_epochs=1).fit(Plain(network, *inputs, **settings))
    return network


def spectral(weight):
    return torch.linalg.matrix_norm(weight.detach().double().flatten(1), 2).item()


def attention():
    return nn.MultiheadAttention(8, 2, batch_first=True), *[torch.ones(2, 3, 8)] * 3


def indices():
    return torch.arange(12).view(3, 4)


KINDS = {
    "attention": (attention, ["in_proj_weight", "out_proj.weight"]),
    "lstm": (lambda: (nn.LSTM(5, 4, num_layers=2, bidirectional=True), torch.ones(3, 2, 5)), None),
    "gru": (lambda: (nn.GRU(5, 4), torch.ones(3, 2, 5)), ["weight_ih_l0", "weight_hh_l0"]),
    "embedding": (lambda: (nn.Embedding(12, 5), indices()), ["weight"]),
    "encoder layer": (lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.ones(2, 3, 8)), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_in_every_module_have_the_norm(kind, trainer_of):
    make, names = KINDS[kind]
    network, *inputs = make()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}

    train(trainer_of, network, *inputs, lr=0.01)

    names = names or [name for name, parameter in network.named_parameters() if parameter.ndim > 1]
    for name in names:
        assert spectral(network.get_parameter(name)) == pytest.approx(1, rel=0.05)
        assert not torch.equal(network.get_parameter(name), before[name])


CONVOLUTIONS = {
    "plain": (nn.Conv2d(2, 3, 3, padding=1), 2),
    "strided": (nn.Conv1d(2, 4, 5, stride=2, dilation=2), 2),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode="circular"), 4),
    "transposed": (nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1), 2),
    "transposed 1d": (nn.ConvTranspose1d(3, 2, 4), 3),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("norm", ["operator", "matrix"])
def test_convolutions_have_the_norm(kind, norm, trainer_of):
    layer, channels = CONVOLUTIONS[kind]
    layer = copy.deepcopy(layer)
    layer.reset_parameters()
    inputs = torch.randn(4, channels, *[16] * (layer.weight.ndim - 2))

    train(trainer_of, layer, inputs, callback=SpectralNormalization(2.0, norm=norm), lr=0.001)

    if norm == "operator":
        found = largest_response(layer).item()
    else:
        rows = layer.weight.transpose(0, 1) if layer.transposed else layer.weight
        found = spectral(rows)
    assert found == pytest.approx(2, rel=0.05)


def test_a_tied_weight_is_one_weight(trainer_of):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(12, 5), nn.Linear(5, 12, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, words):
            # Also read as a plain tensor, as language models do.
            return self.head(self.embedding(words)) + self.embedding(words) @ self.embedding.weight.T

    network = train(trainer_of, Tied(), indices(), lr=0.002)

    assert network.head.weight is network.embedding.weight
    assert spectral(network.head.weight) == pytest.approx(1, rel=0.02)


class Pyramid(nn.Module):
    """One kernel in two convolutions, as in TridentNet: with the stride 2, its norm is smaller."""

    def __init__(self, strides):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, stride=strides[0], padding=1)
        self.second = nn.Conv2d(3, 3, 3, stride=strides[1], padding=1)
        self.second.weight = self.first.weight

    def forward(self, images):
        return torch.cat([self.first(images).flatten(1), self.second(images).flatten(1)], 1)


@pytest.mark.parametrize("strides", [(1, 2), (2, 1)])
def test_a_kernel_of_several_convolutions_has_the_norm_where_it_is_largest(strides, trainer_of):
    network = train(trainer_of, Pyramid(strides), torch.randn(4, 3, 6, 6))

    norms = largest_response(network.first).item(), largest_response(network.second).item()
    assert max(norms) == pytest.approx(1, rel=0.02)
    assert min(norms) < 0.8

    metric = SpectralNorm(iterations=5, input_size="any")
    assert metric(network).item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("strides", [(1, 2), (2, 1)])
def test_a_kernel_of_several_convolutions_is_inside_in_each(strides, trainer_of):
    network = train(trainer_of, Pyramid(strides), torch.randn(4, 3, 6, 6), callback=SpectralConstraint(0.5))

    norms = largest_response(network.first).item(), largest_response(network.second).item()
    assert 0.45 < max(norms) <= 0.5 * (1 + 1e-4)


def test_modules_made_in_configure_model_are_normalized(trainer_of):
    class Late(Plain):
        def __init__(self):
            super().__init__(None, torch.ones(2, 5))

        def configure_model(self):
            if self.network is None:
                self.network = nn.Linear(5, 4)

    module = Late()
    trainer_of(SpectralNormalization(), max_epochs=1).fit(module)

    assert spectral(module.network.weight) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("when", ["before", "during"])
def test_the_remaining_entries_of_a_pruned_weight_are_normalized(when, trainer_of):
    class Pruning(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            if when == "during" and batch_idx == 3:
                prune.random_unstructured(self.network, "weight", 0.5)

    network = nn.Linear(6, 5)
    original = network.weight
    torch.manual_seed(0)
    if when == "before":
        prune.random_unstructured(network, "weight", 0.5)
    module = Pruning(network, torch.randn(8, 6))
    trainer_of(SpectralNormalization(), max_epochs=1).fit(module)
    network(torch.ones(1, 6))

    assert (network.weight == 0).sum() == 15
    assert network.weight_orig is original
    assert spectral(network.weight) == pytest.approx(1, rel=0.02)


def test_the_gradient_of_a_pruned_weight_goes_through_the_remaining_entries(trainer_of):
    torch.manual_seed(0)
    network = nn.Linear(6, 5).double()
    prune.random_unstructured(network, "weight", 0.5)
    raw, mask = network.weight_orig.detach().clone().requires_grad_(), network.weight_mask
    bias = network.bias.detach().clone().requires_grad_()
    inputs = torch.randn(8, 6, dtype=torch.float64)
    trainer_of(SpectralNormalization(power_iterations=30), max_epochs=1).fit(Plain(network, inputs))

    optimizer = torch.optim.Adam([bias, raw], lr=0.02)
    for _ in range(30):
        weight = mask * raw / torch.linalg.matrix_norm(mask * raw, 2)
        optimizer.zero_grad()
        (nn.functional.linear(inputs, weight, bias) - 1).square().mean().backward()
        optimizer.step()
    kept = mask * raw.detach()
    torch.testing.assert_close(network.weight_orig.detach() * mask, kept / torch.linalg.matrix_norm(kept, 2))


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv1d(2, 3, 3)])
def test_a_weight_that_starts_at_zero_leaves_it_and_has_the_norm_then(layer, trainer_of):
    layer = copy.deepcopy(layer)
    nn.init.zeros_(layer.weight)
    network = nn.Sequential(layer, nn.Flatten(1), nn.LazyLinear(3))
    inputs = torch.ones(2, 5) if isinstance(layer, nn.Linear) else torch.ones(2, 2, 8)
    network(inputs)

    train(trainer_of, network, inputs)

    assert largest_response(layer).item() == pytest.approx(1, rel=0.02)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert spectral(network[2].weight) == pytest.approx(1, rel=0.02)


def test_a_zero_weight_without_a_gradient_stays_zero(trainer_of):
    layer = nn.Linear(5, 4)
    nn.init.zeros_(layer.weight)

    train(trainer_of, layer, torch.zeros(2, 5))

    assert layer.weight.eq(0).all()


@pytest.mark.parametrize("callback", [SpectralNormalization(1e39), SpectralConstraint(1e39)])
def test_a_bound_beyond_the_precision_of_weights_is_refused(callback, trainer_of):
    with pytest.raises(ValueError, match=r"norm_bound.* 1e\+39"):
        train(trainer_of, nn.Linear(5, 4), torch.ones(2, 5), callback=callback)


def test_sparse_adam_is_refused_before_training_with_the_remedy(trainer_of):
    network = nn.Embedding(12, 5, sparse=True)
    module = Plain(network, torch.arange(4))
    module.configure_optimizers = lambda: torch.optim.SparseAdam(network.parameters())

    with pytest.raises(MisconfigurationException, match=r"SparseAdam.*'network\.weight'.*dense.*exclude="):
        trainer_of(SpectralNormalization(), max_epochs=1).fit(module)


def test_sparse_adam_trains_under_the_constraint(trainer_of):
    network = nn.Embedding(12, 5, sparse=True)
    module = Plain(network, torch.arange(4))
    module.configure_optimizers = lambda: torch.optim.SparseAdam(network.parameters(), lr=0.1)

    trainer_of(SpectralConstraint(0.5), max_epochs=1).fit(module)

    assert spectral(network.weight) <= 0.5 * (1 + 1e-4)


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_the_size_of_weights_at_the_start_does_not_matter(size, trainer_of):
    network = nn.Linear(5, 4)
    with torch.no_grad():
        network.weight.mul_(size)

    train(trainer_of, network, torch.ones(2, 5), lr=0.02 * size)

    assert spectral(network.weight) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_weight_that_something_else_computes_is_refused(parametrization, trainer_of):
    network = nn.Sequential(parametrization(nn.Linear(5, 4)), nn.Linear(4, 3))

    with pytest.raises(ValueError, match=r"another parametrization computes .*exclude='network\.0\.weight'"):
        train(trainer_of, network, torch.ones(2, 5))

    train(
        trainer_of,
        network,
        torch.ones(2, 5),
        callback=SpectralNormalization(select=Select(exclude="network.0.weight")),
    )
    assert spectral(network[1].weight) == pytest.approx(1, rel=0.02)


def test_a_complex_weight_is_refused(trainer_of):
    network = nn.Linear(3, 2, dtype=torch.complex64)

    with pytest.raises(ValueError, match=r"takes real weights, but 'network\.weight' is torch\.complex64"):
        train(trainer_of, network, torch.ones(2, 3, dtype=torch.complex64))


def test_a_sparse_gradient_becomes_a_dense_one(trainer_of):
    network = nn.Embedding(12, 5, sparse=True)
    module = Plain(network, torch.arange(4))
    module.configure_optimizers = lambda: torch.optim.SGD(network.parameters(), lr=0.1)

    trainer_of(SpectralNormalization(), max_epochs=1).fit(module)

    assert spectral(network.weight) == pytest.approx(1, rel=0.02)


class WithoutEntries(nn.Module):
    def __init__(self, empty):
        super().__init__()
        self.empty, self.full = empty, nn.Linear(4, 3)

    def forward(self, inputs):
        return self.full(inputs) + self.empty(inputs[:, : self.empty.in_features]).sum()


@pytest.mark.parametrize("shape", [(4, 0), (0, 3)])
@pytest.mark.parametrize(
    "control",
    [
        SpectralNormalization(0.5),
        SpectralConstraint(0.5),
        SpectralNormPenalty(3.0),
        SpectralNormPenalty(3.0, mode="grad"),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_entries_does_not_stop_the_run_and_others_are_controlled(control, shape, trainer_of):
    network = WithoutEntries(nn.Linear(*shape))
    start = torch.linalg.matrix_norm(network.full.weight, 2).item()

    train(trainer_of, network, torch.ones(2, 4), callback=control)

    norm = torch.linalg.matrix_norm(network.full.weight, 2).item()
    assert norm < start if isinstance(control, SpectralNormPenalty) else norm <= 0.505
