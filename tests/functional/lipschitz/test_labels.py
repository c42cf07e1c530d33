"""Bounds for all labels: never below the bound for one of them, and nothing else about a label is taken for known."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import Calls, constant
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at

LABELS, WIDTH = 5, 4


class Conditional(nn.Module):
    """A function of features of x and of a label, with tables of weights."""

    def __init__(self, function):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
            self.embed, self.style = nn.Embedding(LABELS, WIDTH), nn.Embedding(LABELS, 2 * WIDTH)
            self.norm = nn.LayerNorm(WIDTH, eps=0.3)
        with torch.no_grad():
            # The largest row is not the first.
            self.embed.weight.mul_(torch.tensor([1.0, 0.3, 4.0, 2.0, 0.1])[:, None])
        self.function = function
        self.double().eval()

    def forward(self, x, labels):
        return self.function(self, torch.tanh(self.body(x)), labels)


def modulated(net, h, y):
    scale, shift = net.style(y).chunk(2, 1)
    return net.head((1 + scale) * net.norm(h) + shift)


def masked(net, h, y):
    return h.masked_fill((y > 1)[:, None], 0.0) + torch.where((y == 0)[:, None], 2.0, h)


def attended(net, h, y):
    keys = net.embed(y)[:, None] + constant(2, 3, WIDTH)[0]
    return (h[:, None] * keys).sum(-1).softmax(-1)


# A function, and how much its bound for all labels may be above the largest one.
CRITICS = {
    "projection": (lambda net, h, y: net.head(h) + (net.embed(y) * h).sum(1, keepdim=True), 1),
    "table": (lambda net, h, y: net.embed.weight[y] * h, 1),
    "selected": (lambda net, h, y: net.embed.weight.index_select(0, y) * h, 1),
    "function": (lambda net, h, y: F.embedding(y, net.embed.weight) * h, 1),
    "one hot": (lambda net, h, y: F.one_hot(y, LABELS).to(h.dtype) @ constant(LABELS, WIDTH) * h, 4),
    "joined": (lambda net, h, y: net.head(torch.cat([h, net.embed(y)], 1)[:, 2 : 2 + WIDTH]), 1),
    "modulated": (modulated, 2),
    "power": (lambda net, h, y: h * torch.arange(5.0).to(h)[y, None] ** 3, 1),
    "shifted": (lambda net, h, y: net.head(h + net.embed(y).exp()), 1),
    "bounded": (lambda net, h, y: h * net.embed(y).exp().sigmoid(), 2),
    "masked": (masked, 1),
    "attended": (attended, 2),
    "layered": (lambda net, h, y: h[:, :2] * F.relu(net.head(net.embed(y))), 5),
    "other labels": (lambda net, h, y: net.embed((y + 1) % LABELS) * h, 1),
    "hidden in place": (lambda net, h, y: h.clone().mul_(net.embed(y)), 1),
    "output of the label": (lambda net, h, y: h.gather(1, (y % WIDTH)[:, None]), 1),
    "output by index": (lambda net, h, y: h[torch.arange(2), y % WIDTH], 1),
    "two outputs of one sample": (lambda net, h, y: h[torch.tensor([0, 0]), y % WIDTH], 1),
    "samples": (lambda net, h, y: h.index_select(0, y % 2) + h[y % 2], 1),
    "entries": (lambda net, h, y: h.take(y) + h.take_along_dim((y % 2)[:, None], 0).mean(1), 4),
    "bag": (lambda net, h, y: h * F.embedding_bag(y[:, None].expand(2, 3), net.embed.weight, mode="sum"), 1),
    "bag of means": (lambda net, h, y: h * F.embedding_bag(y[:, None], net.embed.weight), 1),
    "bag of maxima": (lambda net, h, y: h * F.embedding_bag(torch.stack([y, y], 1), net.embed.weight, mode="max"), 1),
    "columns of rows": (lambda net, h, y: h @ net.embed(y)[:, torch.arange(WIDTH) * (y[:1] != 2)].mT, 4),
}


@pytest.mark.parametrize("name", CRITICS)
def test_the_bound_for_all_labels_is_not_below_that_of_any_label(name):
    function, looser = CRITICS[name]
    network, x = Conditional(function), constant(2, 3)
    report = lipschitz_bound(network, (x, torch.zeros(2, dtype=torch.long)), all_labels=True)
    assert report.unbounded == ()
    single = [lipschitz_bound(network, (x, torch.full((2,), label))).value for label in range(LABELS)]
    assert max(single) * (1 - 1e-9) <= report.value <= looser * max(single) * (1 + 1e-6)
    for label in range(LABELS):
        labels = torch.tensor([label, 2])
        norm = jacobian_norm_at(*flat_function(Calls(lambda x, labels=labels: network(x, labels)), [x]))
        assert norm <= report.value


def in_a_branch(net, h, y):
    return h if (y == 0).all() else 10 * h


def at_places(net, h, y):
    z = torch.zeros(len(h), LABELS).to(h)
    z[torch.arange(len(h)), y] = 100.0
    return z[:, :WIDTH] * h


UNKNOWN = {
    "number": (lambda net, h, y: y[:, None] * h, "product"),
    "exponential": (lambda net, h, y: net.embed(y).exp() * h, "product"),
    "branch": (in_a_branch, "depends on the values"),
    "read": (lambda net, h, y: h * float(y.sum()), "depends on the values"),
    "rounded": (lambda net, h, y: h * net.embed(y).div(30, rounding_mode="floor"), "product"),
    "size": (lambda net, h, y: h * len(torch.arange(y.max() + 1)), "depends on the values"),
    "shape": (lambda net, h, y: h * net.embed.weight[: 1 + len(y.nonzero())].sum(0), "depends on the values"),
    "mask": (lambda net, h, y: h * (1 + net.embed(y)[y > 0].sum()), "size"),
    "ones": (lambda net, h, y: h * (1 + torch.ones_like(y.nonzero()).sum()), "size"),
    "as many classes as there are": (lambda net, h, y: h * (1 + F.one_hot(y).sum()), "size"),
    "places": (at_places, "product"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_for_all_labels_has_no_bound(name):
    function, why = UNKNOWN[name]
    network, inputs = Conditional(function), (constant(2, 3), torch.zeros(2, dtype=torch.long))
    report = lipschitz_bound(network, inputs, all_labels=True)
    assert report.value == math.inf
    assert any(why in reason for _, reason in report.unbounded)


def test_without_labels_nothing_changes():
    network, inputs = nn.Linear(3, 2).double(), constant(2, 3)
    assert lipschitz_bound(network, inputs, all_labels=True) == lipschitz_bound(network, inputs)


def test_in_a_ball_values_count_that_no_label_changes():
    network, x = Conditional(lambda net, h, y: torch.tanh(9 * h) * net.embed(y)), constant(2, 3)
    whole, fixed, all_labels = (
        lipschitz_bound(network, (x, torch.tensor([1, 1])), **settings).value
        for settings in ({"all_labels": True}, {"radius": 0.01}, {"all_labels": True, "radius": 0.01})
    )
    assert fixed < all_labels < 0.8 * whole
    norms = [
        jacobian_norm_at(*flat_function(Calls(lambda x, k=k: network(x, torch.tensor([k, 2]))), [x])) for k in (1, 2)
    ]
    assert norms[0] <= norms[1] <= all_labels
    shifted = Conditional(lambda net, h, y: torch.tanh(9 * h + net.embed(y)))
    near = lipschitz_bound(shifted, (x, torch.tensor([1, 1])), all_labels=True, radius=0.01).value
    alone = Conditional(lambda net, h, y: 9 * h)
    assert near == pytest.approx(lipschitz_bound(alone, (x, torch.tensor([1, 1])), radius=0.01).value, rel=1e-9)
    squared = Conditional(lambda net, h, y: (h + net.embed(y).exp()).square())
    assert lipschitz_bound(squared, (x, torch.tensor([1, 1])), all_labels=True, radius=0.01).value == math.inf


def test_a_weight_that_is_not_finite_makes_the_bound_nan():
    network = Conditional(CRITICS["projection"][0])
    with torch.no_grad():
        network.embed.weight[3, 1] = math.nan
    assert math.isnan(lipschitz_bound(network, (constant(2, 3), torch.zeros(2).long()), all_labels=True).value)
