"""LSTM and GRU layers of a fixed length: the bound is that of the recursion, and not below exact Jacobians."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import constant
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at, largest_jacobian
from tests.functional.lipschitz.test_recurrent import Uses, outputs_of

LAYERS = {
    "plain": (nn.LSTM, {}, (3, 2, 3)),
    "alone": (nn.LSTM, {"bias": False}, (4, 3)),
    "stacked": (nn.LSTM, {"num_layers": 2, "batch_first": True, "dropout": 0.5}, (1, 3, 3)),
    "both ways": (nn.LSTM, {"bidirectional": True}, (3, 1, 3)),
    "projected": (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}, (3, 1, 3)),
    "one step": (nn.LSTM, {}, (1, 1, 3)),
    "GRU": (nn.GRU, {}, (4, 2, 3)),
    "stacked GRU": (nn.GRU, {"num_layers": 2, "batch_first": True, "bias": False}, (1, 3, 3)),
    "GRU both ways": (nn.GRU, {"bidirectional": True}, (3, 1, 3)),
}


def built(kind, scale=1.0, **settings):
    torch.manual_seed(0)
    network = kind(3, 4, **settings)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(scale)
    return network.double().eval()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
def test_no_jacobian_of_a_gated_layer_is_above_its_bound(name, scale):
    kind, settings, shape = LAYERS[name]
    network, inputs = built(kind, scale, **settings), constant(*shape)
    for part in (network, outputs_of(network)):
        report = lipschitz_bound(part, inputs)
        assert report.unbounded == ()
        assert 0 < largest_jacobian(part, [inputs], points=5) <= report.value < math.inf


def norms(weight, gates):
    return [np.linalg.norm(each, 2) for each in np.split(weight.detach().numpy(), gates)]


def test_the_bound_of_an_lstm_is_the_norm_of_its_recursion():
    network, steps = built(nn.LSTM), 4
    w, u = norms(network.weight_ih_l0, 4), norms(network.weight_hh_l0, 4)
    matrix = np.zeros((steps, steps))
    for source in range(steps):
        cell = state = 0.0
        for step in range(steps):
            entered = 1.0 if step == source else 0.0
            by_gates = [each[0] / 4 + each[1] * step / 4 + each[2] for each in (w, u)]
            cell = cell + by_gates[0] * entered + by_gates[1] * state
            state = cell + w[3] / 4 * entered + u[3] / 4 * state
            matrix[step, source] = state
    bound = lipschitz_bound(outputs_of(network), constant(steps, 1, 3)).value
    assert bound == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6)


def test_the_bound_of_a_gru_is_the_norm_of_its_recursion():
    network, steps = built(nn.GRU), 4
    w, u = norms(network.weight_ih_l0, 3), norms(network.weight_hh_l0, 3)
    new, shift = network.weight_hh_l0.detach().numpy()[8:], network.bias_hh_l0.detach().numpy()[8:]
    reset = (np.abs(new).sum(1) + np.abs(shift)).max() / 4
    entered, again = (each[2] + reset * each[0] + each[1] / 2 for each in (w, u))
    matrix = np.tril((1 + again) ** np.maximum(np.subtract.outer(np.arange(steps), np.arange(steps)), 0))
    bound = lipschitz_bound(outputs_of(network), constant(steps, 1, 3)).value
    assert bound == pytest.approx(entered * np.linalg.norm(matrix, 2), rel=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_state_at_the_start_counts_with_its_size(kind):
    network, inputs, states = built(kind, 2.0), constant(2, 1, 3), constant(2, 1, 4)
    join = (lambda h: (h, 5 * h.flip(-1))) if kind is nn.LSTM else lambda h: 5 * h
    function = lambda layer, x, h: layer(x, join(h.tanh()))[0]  # noqa: E731
    report = lipschitz_bound(Uses(network, function), (inputs, states[:1]))
    assert report.unbounded == ()
    for seed in range(3):
        assert largest_jacobian(Uses(network, function), [inputs, states[:1]], seed=seed) <= report.value < math.inf

    unknown = lipschitz_bound(Uses(network, lambda layer, x, h: layer(x, join(h))[0]), (inputs, states[:1]))
    assert unknown.value == math.inf
    assert "size of that state has no known bound" in unknown.unbounded[0][1]

    far = lambda scale: lipschitz_bound(Uses(network, lambda layer, x: layer(x, join(scale * states[:1]))[0]), inputs)  # noqa: E731
    assert far(10.0).value > far(1.0).value >= far(0.0).value


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_cells_in_a_loop_have_a_bound(kind):
    cell, inputs = built(kind, 2.0), constant(3, 1, 3)

    def unrolled(cell, x):
        state = None
        for each in x:
            state = cell(each, state)
        return state

    report = lipschitz_bound(Uses(cell, unrolled), inputs)
    assert report.unbounded == ()
    for seed in range(3):
        assert largest_jacobian(Uses(cell, unrolled), [inputs], seed=seed) <= report.value < math.inf


def test_the_forget_gate_of_a_large_cell_needs_its_size():
    # The cell at the start is 100, and the gate that forgets opens with x.
    network = nn.LSTM(1, 1, bias=False).double()
    with torch.no_grad():
        network.weight_ih_l0.copy_(torch.tensor([[0.0], [1.0], [0.0], [0.0]])), network.weight_hh_l0.zero_()
    start = torch.zeros(1, 1, 1).double(), torch.full((1, 1, 1), 100.0).double()
    part, x = Uses(network, lambda layer, x: layer(x, start)[1][1]), torch.zeros(1, 1, 1).double()
    truth = jacobian_norm_at(*flat_function(part, [x]))
    assert truth == pytest.approx(25)
    assert truth <= lipschitz_bound(part, x).value < 2 * truth


def test_too_many_steps_and_weights_that_are_not_finite():
    long = lipschitz_bound(nn.LSTM(3, 4), torch.zeros(1025, 1, 3))
    assert (long.value, long.unbounded) == (math.inf, (("LSTM", "its rule covers at most 1024 steps, got 1025"),))
    too_large = lipschitz_bound(built(nn.GRU, 1e5), torch.zeros(100, 1, 3).double())
    assert too_large.value == math.inf
    assert "too large for a number" in too_large.unbounded[0][1]
    for kind in (nn.LSTM, nn.GRU):
        network = built(kind)
        with torch.no_grad():
            network.weight_hh_l0[1, 1] = math.nan
        assert math.isnan(lipschitz_bound(network, torch.zeros(2, 1, 3).double()).value)
