"""Spectral control of layers in any layout; what sits in no layer is left alone."""

import logging

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader
from transformers.pytorch_utils import Conv1D

from lightning_reg import Select, SpectralConstraint, SpectralNormalization, SpectralNormPenalty, register_layer
from lightning_reg.metrics import SpectralNorm
from tests.layouts import BESIDE_LAYERS, InputsFirst, InputsFirstConvolution, WithTokens
from tests.models import weights_of

CONTROLS = {
    "normalization": lambda select=None: SpectralNormalization(0.5, select=select, power_iterations=10),
    "constraint": lambda select=None: SpectralConstraint(0.5, select=select),
}
every_control = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)


class Learner(LightningModule):
    def __init__(self, network, rate=0.1):
        super().__init__()
        self.network, self.rate = network, rate

    def loss(self, batch):
        return self.network(batch).square().mean() - self.network(batch).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def batches(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(torch.randn(16, *shape, generator=generator, dtype=dtype), batch_size=4)


def largest(matrix):
    return torch.linalg.matrix_norm(matrix.double(), 2).item()


@every_control
def test_parameters_beside_layers_are_left_alone_and_the_plan_says_why(trainer_of, caplog, control):
    network = WithTokens()
    before = weights_of(network)
    with caplog.at_level(logging.INFO):
        trainer_of(control(), max_epochs=1).fit(Learner(network, 0.0), batches(5))

    after = weights_of(network)
    assert all(torch.equal(after[name], before[name]) for name in BESIDE_LAYERS)
    assert largest(after["encoder.weight"]) == pytest.approx(0.5, rel=1e-2)
    plan = next(r.message for r in caplog.records if r.message.startswith("Regularization plan"))
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in plan.splitlines()[1:]}
    for name, shape in BESIDE_LAYERS.items():
        assert rows[f"network.{name}"] == f"{shape}, in no layer none: in no layer"


@every_control
def test_a_pattern_that_matches_nothing_else_takes_them(trainer_of, control):
    network = WithTokens()
    before = weights_of(network)

    select = ["network.pos_*", "*A_log", "*e*"]  # the last matches the layer, and the others with it
    trainer_of(control(select), max_epochs=1).fit(Learner(network, 0.0), batches(5))

    after = weights_of(network)
    for name in ("pos_embed", "A_log", "encoder.weight"):
        assert largest(after[name].flatten(1)) == pytest.approx(0.5, rel=1e-2)
    for name in ("cls_token", "layer_scale"):
        assert torch.equal(after[name], before[name])


@every_control
def test_a_network_written_without_layers_is_controlled_as_a_whole(trainer_of, control):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(5, 7))
            self.second = nn.Parameter(torch.randn(7, 2))

        def forward(self, x):
            return torch.tanh(x @ self.first) @ self.second

    network = Product()
    trainer_of(control(), max_epochs=1).fit(Learner(network), batches(5))

    assert largest(network.first) == pytest.approx(0.5, rel=1e-2)
    assert largest(network.second) == pytest.approx(0.5, rel=1e-2)


@every_control
def test_scales_of_norms_and_biases_of_attention_are_left_alone(trainer_of, control):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm((3, 4))
            self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True)

        def forward(self, x):
            x = self.norm(x)
            return self.attention(x, x, x)[0]

    network = Block()
    before = weights_of(network)
    trainer_of(control(), max_epochs=1).fit(Learner(network, 0.0), batches(3, 4))

    after = weights_of(network)
    for name in ("norm.weight", "attention.bias_k", "attention.bias_v"):
        assert torch.equal(after[name], before[name])
    assert largest(after["attention.in_proj_weight"]) == pytest.approx(0.5, rel=1e-2)


@every_control
def test_a_users_declaration_decides_what_is_a_layer(trainer_of, control):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 5))
            self.weight = nn.Parameter(torch.randn(5, 5))

        def forward(self, x):
            return x @ self.table * self.weight.mean(1)

    register_layer(Own, weight="table", output_dim=1)
    register_layer(Own, output_dim=None)
    network = Own()
    before = weights_of(network)
    trainer_of(control(), max_epochs=1).fit(Learner(network, 0.0), batches(5))

    assert largest(network.table) == pytest.approx(0.5, rel=1e-2)
    assert torch.equal(network.weight, before["weight"])


LAYERS = {
    "transformers": (lambda: _large(Conv1D(8, 5)), (5,), lambda layer: layer.weight.T),
    "user": (lambda: InputsFirst(5, 8), (5,), lambda layer: layer.kernel.T),
    "user's convolution": (lambda: InputsFirstConvolution(5, 8, 3), (5, 6), lambda layer: _rows(layer.weight)),
}
every_layer = pytest.mark.parametrize(("make", "shape", "matrix"), LAYERS.values(), ids=LAYERS)


def _large(layer):
    nn.init.normal_(layer.weight)
    return layer


def _rows(kernel):
    """Return the matrix of a kernel (inputs, outputs, taps) with a row for each output."""
    return kernel.transpose(0, 1).flatten(1)


@every_control
@every_layer
def test_the_norm_belongs_to_the_matrix_with_a_row_for_each_output(trainer_of, control, make, shape, matrix):
    layer = make()

    trainer_of(control(), max_epochs=1).fit(Learner(layer, 1e-4), batches(*shape))

    assert largest(matrix(layer)) == pytest.approx(0.5, rel=1e-2)
    assert SpectralNorm()(layer).item() == pytest.approx(largest(matrix(layer)), rel=1e-5)


@every_layer
def test_the_constraint_is_the_projection_onto_the_ball(trainer_of, make, shape, matrix):
    layer = make()
    u, s, vh = torch.linalg.svd(matrix(layer).detach().double(), full_matrices=False)

    trainer_of(SpectralConstraint(0.5), max_epochs=1).fit(Learner(layer, 0.0), batches(*shape))

    torch.testing.assert_close(matrix(layer).double(), (u * s.clamp(max=0.5)) @ vh, rtol=1e-3, atol=1e-5)


@every_control
def test_weights_of_one_shape_may_have_different_layouts(trainer_of, control):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = InputsFirstConvolution(5, 8, 3), nn.Bilinear(8, 3, 5)

        def forward(self, images):
            return self.second(self.first(images).mean(2), images[:, :3, 0])

    network = Both()
    assert network.first.weight.shape == network.second.weight.shape

    trainer_of(control(), max_epochs=1).fit(Learner(network), batches(5, 6))

    assert largest(_rows(network.first.weight.detach())) == pytest.approx(0.5, rel=1e-2)
    assert largest(network.second.weight.detach().flatten(1)) == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("mode", ["loss", "grad"])
@every_layer
def test_the_penalty_trains_as_the_term_written_by_hand(trainer_of, mode, make, shape, matrix):
    module, expected = Learner(make().double()), Learner(make().double())
    expected.load_state_dict(module.state_dict())
    data = batches(*shape, dtype=torch.float64)

    trainer_of(SpectralNormPenalty(0.05, mode=mode), max_epochs=1).fit(module, data)

    optimizer = expected.configure_optimizers()
    for batch in data:
        optimizer.zero_grad()
        norm = torch.linalg.svdvals(matrix(expected.network))[0]
        (expected.loss(batch) + 0.05 * norm.square()).backward()
        optimizer.step()
    # The norm is an estimate.
    torch.testing.assert_close(weights_of(module), weights_of(expected), rtol=1e-3, atol=1e-4)


@every_layer
def test_normalization_trains_as_the_quotient_written_by_hand(trainer_of, make, shape, matrix):
    module, expected = Learner(make().double()), Learner(make().double())
    expected.load_state_dict(module.state_dict())
    data = batches(*shape, dtype=torch.float64)

    trainer_of(SpectralNormalization(0.5, power_iterations=30), max_epochs=1).fit(module, data)

    optimizer = expected.configure_optimizers()
    (name,) = (name for name, weight in expected.named_parameters() if weight.ndim > 1)
    layer, leaf = expected.network, name.rpartition(".")[2]

    def quotient():
        return getattr(layer, leaf) * 0.5 / torch.linalg.svdvals(matrix(layer))[0]

    for batch in data:
        optimizer.zero_grad()
        output = functional_call(layer, {leaf: quotient()}, (batch,))
        (output.square().mean() - output.mean()).backward()
        optimizer.step()
    torch.testing.assert_close(module.network.get_parameter(leaf), quotient(), rtol=1e-4, atol=1e-6)


def test_types_of_modules_still_choose(trainer_of):
    network = WithTokens()
    before = weights_of(network)

    trainer_of(SpectralNormalization(0.5, select=Select(module_types=[nn.Linear])), max_epochs=1).fit(
        Learner(network, 0.0), batches(5)
    )

    assert {name for name, weight in weights_of(network).items() if not torch.equal(weight, before[name])} == {
        "encoder.weight"
    }
