"""The bound of margins as a product of constants, against norms by SVD, and the networks that have none."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import margin_bounds
from lightning_reg.functional.lipschitz.product import NoProductError, margin_product


class Own(nn.Module):
    """A network whose `forward` is a function of it and its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.matrix, self.scale = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))

    def forward(self, inputs):
        return self.function(self, inputs)


class Tied(Own):
    def __init__(self):
        super().__init__(lambda net, x: net.last(net.second(net.first(x).relu())))
        self.second.weight = self.first.weight


FLAT, IMAGE = torch.zeros(1, 4), torch.zeros(1, 1, 8, 8)
PRODUCTS = {
    "one layer": (lambda: nn.Linear(4, 3), FLAT, 1.0, {}),
    "a chain": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)),
        FLAT,
        1.0,
        {"0.weight": 1, "3.weight": 1},
    ),
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Conv2d(4, 4, 3, stride=2), nn.Sigmoid()),
            *(nn.Flatten(), nn.Linear(16, 3)),
        ),
        IMAGE,
        3 / 4,  # nine windows of the pooling share a pixel, and a sigmoid has slopes up to 1 / 4
        {"0.weight": 1, "3.weight": 1},
    ),
    "functions": (
        lambda: Own(lambda net, x: net.last(2 * (nn.functional.linear(x, net.first.weight) @ net.matrix).relu())),
        FLAT,
        2.0,
        {"first.weight": 1, "matrix": 1},
    ),
    "layers that share a weight": (lambda: Tied(), FLAT, 1.0, {"first.weight": 2}),
    "a layer that is called twice": (
        lambda: Own(lambda net, x: net.last(net.first(net.first(x).relu()))),
        FLAT,
        1.0,
        {"first.weight": 2},
    ),
}


@pytest.mark.parametrize(("make", "example", "constant", "powers"), PRODUCTS.values(), ids=PRODUCTS)
def test_the_product_has_each_layer_before_the_last_one(make, example, constant, powers):
    product = margin_product(make(), [example])

    assert product.constant == pytest.approx(constant, rel=1e-6)
    assert {factor.weight: factor.calls for factor in product.factors} == powers
    assert all(factor.gain is None for factor in product.factors)
    assert product.last in {"weight", "5.weight", "6.weight", "last.weight"}


@pytest.mark.parametrize("seed", range(3))
def test_the_product_of_exact_norms_is_never_below_the_bound_of_certificates(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)).double()

    product = margin_product(network, [FLAT.double()])

    rows = network[4].weight.detach().numpy()
    norms = [np.linalg.norm(network[index].weight.detach().numpy(), 2) for index in (0, 2)]
    bounds = product.constant * np.prod(norms) * np.linalg.norm(rows[:, None] - rows, axis=2)
    assert (margin_bounds(network, FLAT.double()).numpy() <= bounds * (1 + 1e-6)).all()


def test_the_constant_of_a_normalization_layer_is_a_multiple_of_its_scale():
    network = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0.01), nn.Linear(8, 3))

    factors = {factor.weight: factor.gain for factor in margin_product(network, [FLAT]).factors}

    assert factors == {"0.weight": None, "1.weight": pytest.approx(10.0)}


def test_the_weights_do_not_change_and_random_numbers_neither():
    network = PRODUCTS["convolutions"][0]().train()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    state = torch.get_rng_state()

    margin_product(network, [IMAGE])

    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_of_zeros_have_a_product():
    network = PRODUCTS["a chain"][0]()
    nn.init.zeros_(network[5].weight)
    nn.init.zeros_(network[0].weight)

    assert margin_product(network, [FLAT]).constant == pytest.approx(1.0)


def test_many_layers_do_not_overflow():
    network = nn.Sequential(*(nn.Linear(40, 40) for _ in range(300)), nn.Linear(40, 3))

    product = margin_product(network, [torch.zeros(1, 40)])

    assert len(product.factors) == 300
    assert product.constant == pytest.approx(1.0)


NONE = {
    "a sum": (lambda net, x: net.last(x + net.second(net.first(x).relu())), "constants of 'first', 'second', as in a"),
    "parts of a value": (lambda net, x: net.last(torch.cat([net.first(x)[:, :2], x[:, 2:]], 1)), "of 'first', as in"),
    "a scale of its own": (lambda net, x: net.last(net.first(x) * net.scale), "constants of 'scale', as in"),
    "a matrix that is computed": (lambda net, x: net.last(x @ net.matrix.T), "constants of 'matrix', as in"),
    "a result that is not used": (lambda net, x: (net.first(x), net.last(x))[1], "constants of 'first', as in"),
    "an unbounded function": (lambda net, x: net.last(x.exp()), r"no bound is known \(exp: its derivative"),
    "scaled logits": (lambda net, x: 2 * net.last(x), "its last operation is not a linear layer"),
    "probabilities": (lambda net, x: net.last(x).softmax(1), "its last operation is not a linear layer"),
    "no input": (lambda net, x: net.last(0 * x), "its output does not depend on its input"),
}


@pytest.mark.parametrize(("function", "reason"), NONE.values(), ids=NONE)
def test_a_network_whose_bound_is_no_product_is_refused_with_the_reason(function, reason):
    with pytest.raises(NoProductError, match=reason):
        margin_product(Own(function), [FLAT])


LAYERS = {
    "batch norm": (nn.BatchNorm2d(1), "the scale of '0', a BatchNorm2d, follows the data"),
    "reflected borders": (
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        "the constant of '0', a Conv2d, is not",
    ),
    "a learned slope": (nn.PReLU(), "the constant of '0', a PReLU, is not"),
}


@pytest.mark.parametrize(("layer", "reason"), LAYERS.values(), ids=LAYERS)
def test_a_layer_whose_constant_is_not_followed_is_refused_by_name(layer, reason):
    with pytest.raises(NoProductError, match=reason):
        margin_product(nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3)), [IMAGE])


def test_a_product_is_recognized_whatever_the_scale_of_weights():
    network = PRODUCTS["a chain"][0]()
    for weight in network.parameters():
        weight.data.fill_(math.inf)

    assert margin_product(network, [FLAT]).constant == pytest.approx(1.0)


def call(forward, inputs):
    return forward(inputs)


def test_a_forward_on_the_instance_that_is_bound_to_a_layer_has_the_weights_of_the_walk():
    network = PRODUCTS["a chain"][0]()
    for layer in network[:3]:
        layer.forward = partial(call, layer.forward)

    product = margin_product(network, [FLAT])

    assert product.constant == pytest.approx(1.0)
    assert [factor.weight for factor in product.factors] == ["0.weight", "3.weight"]
