"""Recurrent layers of a fixed length."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at, largest_jacobian

LAYERS = {
    "plain": ({}, (2, 5, 3)),
    "alone": ({"nonlinearity": "relu"}, (6, 3)),
    "batch first": ({"batch_first": True, "nonlinearity": "relu"}, (2, 5, 3)),
    "stacked": ({"num_layers": 3, "bias": False}, (4, 1, 3)),
    "both ways": ({"bidirectional": True}, (4, 2, 3)),
    "stacked both ways": ({"num_layers": 2, "bidirectional": True, "batch_first": True}, (1, 4, 3)),
    "one step": ({"num_layers": 2}, (1, 2, 3)),
}


class Uses(nn.Module):
    """A function of a layer and its inputs."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *inputs):
        return self.function(self.layer, *inputs)


def outputs_of(layer):
    return Uses(layer, lambda layer, x: layer(x)[0])


def layer(scale=1.5, **settings):
    torch.manual_seed(0)
    network = nn.RNN(3, 4, **settings)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(scale)
    return network.double()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_no_jacobian_of_a_recurrent_layer_is_above_its_bound(name, scale):
    settings, shape = LAYERS[name]
    network, inputs = layer(scale, **settings), torch.randn(shape, dtype=torch.float64)
    for part in (network, outputs_of(network)):
        report = lipschitz_bound(part, inputs)

        assert report.unbounded == ()
        assert 0 < largest_jacobian(part, [inputs], points=5) <= report.value * (1 + 1e-9)
    assert network(inputs)[0].shape[-1] in {4, 8}


def test_a_state_at_the_start_counts():
    network, states = layer(num_layers=2, bidirectional=True), torch.randn(4, 1, 4, dtype=torch.float64)
    inputs = torch.randn(3, 1, 3, dtype=torch.float64)
    for function, arguments in (
        (lambda layer, x, h: layer(x, h), [inputs, states]),
        (lambda layer, h: layer(inputs, h), [states]),
    ):
        report = lipschitz_bound(Uses(network, function), tuple(arguments))

        assert report.unbounded == ()
        assert 0 < largest_jacobian(Uses(network, function), arguments, points=5) <= report.value


@pytest.mark.parametrize("steps", [1, 5, 1025])
def test_the_bound_is_the_norm_of_the_matrix_of_powers_and_attained_by_one_unit(steps):
    network = nn.RNN(1, 1, bias=False, nonlinearity="relu").double()
    with torch.no_grad():
        network.weight_ih_l0.fill_(0.5), network.weight_hh_l0.fill_(0.9)
    powers = np.tril(0.9 ** np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)).astype(float)))
    expected = 0.5 * np.linalg.norm(powers, 2)
    bound = lipschitz_bound(outputs_of(network), torch.zeros(steps, 1, dtype=torch.float64)).value

    assert expected * (1 - 1e-9) <= bound
    assert bound == pytest.approx(expected, rel=1e-6 if steps < 1025 else 1e-2)
    if steps == 5:
        ones = torch.ones(steps, 1, dtype=torch.float64)
        assert bound == pytest.approx(jacobian_norm_at(*flat_function(outputs_of(network), [ones])))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_cell_is_its_matrices_side_by_side(nonlinearity):
    cell = nn.RNNCell(3, 4, nonlinearity=nonlinearity).double()
    inputs, state = torch.randn(1, 3).double(), torch.randn(1, 4).double()
    with_state = lipschitz_bound(cell, (inputs, state))
    both = torch.cat([cell.weight_ih, cell.weight_hh], 1).detach().numpy()

    assert with_state.per_layer == {"RNNCell": pytest.approx(np.linalg.norm(both, 2))}
    assert largest_jacobian(cell, [inputs, state]) <= with_state.value
    assert lipschitz_bound(cell, inputs).value == pytest.approx(np.linalg.norm(cell.weight_ih.detach().numpy(), 2))

    network = Uses(cell, lambda cell, x: cell(x[1], 0.5 * cell(x[0])))
    sequence = torch.randn(2, 1, 3, dtype=torch.float64)
    report = lipschitz_bound(network, sequence)
    assert 0 < largest_jacobian(network, [sequence]) <= report.value < math.inf


@pytest.mark.parametrize(
    "change",
    [
        lambda rnn: prune.l1_unstructured(rnn, "weight_hh_l0", 0.2),
        lambda rnn: parametrizations.weight_norm(rnn, "weight_hh_l0"),
        lambda rnn: rnn.half(),
    ],
)
def test_weights_of_recurrent_layers_count_as_forward_uses_them(change):
    network = layer(bias=False)
    with torch.no_grad():
        # Where these are parallel, the bound is attained.
        network.weight_ih_l0.copy_(torch.eye(4, 3)), network.weight_hh_l0.copy_(0.5 * torch.eye(4))
    change(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    inputs = torch.zeros(4, 1, 3, dtype=next(network.parameters()).dtype)
    bound = lipschitz_bound(outputs_of(network), inputs).value
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x)[0].flatten(), inputs).flatten(1)

    assert bound == pytest.approx(torch.linalg.matrix_norm(jacobian.double(), 2).item(), rel=1e-3)


def test_weights_that_are_not_finite_give_nan():
    for value in (math.nan, math.inf):
        network = layer()
        with torch.no_grad():
            network.weight_hh_l0[1, 1] = value
        assert math.isnan(lipschitz_bound(network, torch.zeros(2, 1, 3, dtype=torch.float64)).value)
