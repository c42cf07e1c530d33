"""The bound over a ball around a sample: below the bound for all inputs, and above every Jacobian in the ball."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz import lipsdp
from tests.functional.lipschitz.calls import Calls
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at

ACTIVATIONS = [
    *(
        nn.ReLU(inplace=True),
        nn.Tanh(),
        nn.Sigmoid(),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.Softplus(),
        nn.ELU(1.5),
    ),
    *(nn.LeakyReLU(0.1), nn.Hardswish(), nn.Mish(), nn.SELU(), nn.ReLU6(), nn.Hardsigmoid(), nn.Softsign(), nn.PReLU()),
]


def mlp(activation):
    return nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 8), activation, nn.Linear(8, 3))


def convolutions(activation):
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.Conv1d(1, 3, 3, padding=1),
        nn.BatchNorm1d(3),
        activation,
        nn.ConvTranspose1d(3, 2, 2, stride=2),
        activation,
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def drawn(network, seed):
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return network, torch.randn(1, 5, generator=generator, dtype=torch.float64), generator


@pytest.mark.parametrize("make", [mlp, convolutions])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_no_jacobian_in_the_ball_is_above_the_bound_and_the_bound_grows_to_that_of_all_inputs(make, activation):
    network, center, generator = drawn(make(activation), seed=len(repr(activation)))
    function, vector = flat_function(network, [center])
    everywhere = lipschitz_bound(network, center).value
    for radius in (0.05, 0.5, 50.0):
        bound = lipschitz_bound(network, center, radius=radius).value
        for _ in range(4):
            step = torch.randn(5, generator=generator, dtype=torch.float64)
            truth = jacobian_norm_at(function, vector + 0.999 * radius * step / step.norm())
            assert truth <= bound * (1 + 1e-9)
        assert bound <= everywhere


def test_in_a_tiny_ball_a_chain_of_relus_has_the_norm_of_its_jacobian():
    network, center, _ = drawn(mlp(nn.ReLU()), seed=3)
    truth = jacobian_norm_at(*flat_function(network, [center]))
    assert truth > 0
    assert lipschitz_bound(network, torch.zeros_like(center), center=center, radius=1e-7).value == pytest.approx(truth)


def test_slopes_of_sigmoids_are_these_of_the_interval_that_each_unit_may_reach():
    network, center, _ = drawn(nn.Sequential(nn.Linear(5, 4), nn.Sigmoid()), seed=4)
    weight, bias = (parameter.detach().numpy() for parameter in network.parameters())
    radius = 0.2
    before = weight @ center.numpy()[0] + bias
    reach = radius * np.linalg.norm(weight, axis=1)
    steepest = np.clip(0, before - reach, before + reach)
    slopes = np.exp(-steepest) / (1 + np.exp(-steepest)) ** 2
    norm = np.linalg.norm(weight, 2)
    shape = np.linalg.inv(2 * np.eye(4) - weight @ weight.T / norm**2)
    chain = norm * math.sqrt(np.linalg.norm(slopes[:, None] * shape * slopes, 2))
    expected = min(norm * slopes.max(), chain)
    assert lipschitz_bound(network, center, radius=radius).value == pytest.approx(expected, rel=1e-6)


def test_units_that_stay_on_or_off_are_linear_in_the_chain():
    network, center, _ = drawn(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)), seed=6)
    weight, last = (network[place].weight.detach().numpy() for place in (0, 2))
    with torch.no_grad():
        network[0].bias.copy_(torch.tensor([20.0, 20, -20, 0, 0]) - center[0] @ network[0].weight.mT)
    expected = lipsdp.by_search(weight, last, np.array([1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 1]))
    assert expected < 0.98 * np.linalg.norm(weight, 2) * np.linalg.norm(last, 2)
    value = lipschitz_bound(network, center, radius=0.2).value
    assert expected * (1 - 1e-7) < value < expected * (1 + 5e-4)


def test_in_large_chains_units_that_stay_on_or_off_are_linear_too():
    weight = np.random.RandomState(0).normal(size=(130, 5))
    network, center, _ = drawn(nn.Sequential(nn.Linear(5, 130), nn.ReLU(), nn.Linear(130, 3)), seed=6)
    last = network[2].weight.detach().numpy()
    shift = np.repeat([20.0, -20, 0], [60, 60, 10])
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor(weight))
        network[0].bias.copy_(torch.tensor(shift) - center[0] @ network[0].weight.mT)
    norm = np.linalg.norm(weight, 2)
    shape = weight @ weight.T / norm**2
    on, free = np.arange(60), np.arange(120, 130)
    # The least form over what enters the last ten units, and what has passed the first sixty.
    inverse = np.linalg.inv(2 * np.eye(10) - shape[np.ix_(free, free)])
    across = shape[np.ix_(on, free)] @ inverse
    among = shape[np.ix_(on, on)] + across @ shape[np.ix_(free, on)]
    after = np.block([[among, across], [across.T, inverse]])
    through = last[:, np.concatenate([on, free])]
    expected = norm * math.sqrt(np.linalg.norm(through @ after @ through.T, 2))
    assert lipschitz_bound(network, center, radius=0.2).value == pytest.approx(expected, rel=1e-6)


def test_functions_in_place_have_the_slope_of_what_was_there_before():
    center = torch.zeros(1, 2, dtype=torch.float64)  # where a sigmoid is steepest; its values there are 1/2
    value = lipschitz_bound(Calls(lambda x: (1 * x).sigmoid_()), center, radius=1e-3).value
    assert value == pytest.approx(0.25)


def test_in_a_ball_products_have_a_bound_and_post_norm_attention_too():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, layer_norm_eps=0.1).double().eval()
    center = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert lipschitz_bound(layer, center).value == math.inf
    report = lipschitz_bound(layer, center, radius=0.1)
    assert report.unbounded == ()
    assert jacobian_norm_at(*flat_function(layer, [center])) <= report.value < math.inf


def test_an_infinite_radius_is_the_bound_for_all_inputs():
    network, center, _ = drawn(mlp(nn.Tanh()), seed=1)
    assert lipschitz_bound(network, center, radius=math.inf) == lipschitz_bound(network, center)


@pytest.mark.parametrize(
    ("radius", "error"), [(0.0, ValueError), (-1, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_a_radius_that_is_none_is_refused(radius, error):
    with pytest.raises(error, match="`radius` must be"):
        lipschitz_bound(nn.Linear(2, 2), torch.zeros(1, 2), radius=radius)


def test_whole_numbers_on_the_way_do_not_spoil_the_bound_over_a_ball():
    network = Calls(lambda x: torch.tanh(9 * x) * torch.ones_like(x, dtype=torch.long))
    report = lipschitz_bound(network, torch.ones(2), radius=0.01)
    slope = 9 / math.cosh(9 * 0.99) ** 2
    assert slope <= report.value <= 1.05 * slope


def centered(row):
    return row - row.mean()


# The layer, the row that it divides by its length, and whether it divides by the root mean square instead.
NORMALIZED = {
    "RMSNorm": (nn.RMSNorm(5, eps=1e-4), np.array, True),
    "LayerNorm": (nn.LayerNorm(5, eps=1e-4), centered, True),
    "GroupNorm": (nn.GroupNorm(1, 5, eps=1e-4), centered, True),
    "InstanceNorm": (nn.Sequential(nn.Unflatten(1, (1, 5)), nn.InstanceNorm1d(1, eps=1e-4)), centered, True),
    "by hand": (Calls(lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-4).rsqrt()), np.array, True),
    "normalize": (Calls(nn.functional.normalize), np.array, False),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_near_long_rows_a_normalization_is_as_flat_as_at_the_shortest_row_in_the_ball(name):
    network, row_of, is_mean = NORMALIZED[name]
    network, center, radius = network.double(), torch.tensor([[3.0, -1, 2, 0, 5]]).double(), 0.5
    shortest = np.linalg.norm(row_of(center[0].numpy())) - radius
    expected = 1 / math.sqrt(shortest**2 / 5 + 1e-4) if is_mean else 1 / shortest
    bound = lipschitz_bound(network, center, radius=radius).value
    assert bound == pytest.approx(expected, rel=1e-5)
    function, vector = flat_function(network, [center])
    assert jacobian_norm_at(function, (1 - radius / vector.norm()) * vector) <= bound


def test_near_rows_that_may_vanish_a_normalization_is_as_steep_as_everywhere():
    layer = nn.LayerNorm(5, eps=1e-4)
    assert lipschitz_bound(layer, torch.ones(2, 5), radius=0.1).value == pytest.approx(100, rel=1e-4)
