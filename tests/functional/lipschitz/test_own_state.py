"""What `forward` keeps between calls: the bound leaves it as it was, and the module works afterwards."""

import copy
import math
from collections import deque
from functools import partial

import pytest
import torch
from torch import nn

from lightning_reg.functional import lipschitz_bound


class Cache:
    def __init__(self):
        self.entries = []
        self.calls = 0

    def __repr__(self):
        return repr(vars(self))


class Keeps(nn.Module):
    """A linear layer that keeps things in its attributes."""

    def __init__(self, use, **attributes):
        super().__init__()
        self.layer, self.use = nn.Linear(3, 3), use
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.use(self, self.layer(x))


def appends(net, y):
    net.kept.append(y)
    return 1 * net.kept[-1]


def fills(net, y):
    if "y" not in net.kept:
        net.kept["y"] = y
    return 1 * net.kept["y"]


def nests(net, y):
    net.kept["all"][0].append(y)
    return y


def caches(net, y):
    net.kept.calls += 1
    net.kept.entries.append(y)
    return y


def halves(net, y):
    net.kept.mul_(0.5)
    return y + net.kept


KEPT = {
    "list": (appends, list),
    "deque": (appends, lambda: deque(maxlen=2)),
    "dict": (fills, dict),
    "nested": (nests, lambda: {"all": [[]]}),
    "object": (caches, Cache),
    "tensor": (halves, lambda: torch.ones(3)),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_forward_keeps_is_unchanged_after_the_bound(name):
    use, make = KEPT[name]
    network = Keeps(use, kept=make())
    before = copy.deepcopy(network)
    report = lipschitz_bound(network, torch.randn(2, 3))
    assert report.unbounded == ()
    assert report.value == pytest.approx(torch.linalg.matrix_norm(network.layer.weight, 2).item(), rel=2e-5)
    x = torch.randn(2, 3)
    assert torch.equal(network(x), before(x))
    assert repr(network.kept) == repr(before.kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: {"parts": [inner]},
        lambda inner: {"parts": (inner,)},
        lambda inner: {"parts": [partial(inner)]},
        lambda inner: {"parts": [inner.forward]},
    ],
)
def test_a_module_that_is_hidden_in_an_attribute_counts_in_eval_mode_and_keeps_its_statistics(make):
    inner = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    inner[0].running_var.fill_(0.25)
    network = Keeps(lambda net, y: net.parts[0](y), **make(inner)).train()
    report = lipschitz_bound(network, torch.randn(4, 3))
    norm = torch.linalg.matrix_norm(network.layer.weight, 2).item()
    assert report.value == pytest.approx(norm / math.sqrt(0.25 + 1e-5), rel=2e-5)
    assert torch.equal(inner[0].running_mean, torch.zeros(3))
    assert inner[0].num_batches_tracked == 0
    assert inner.training
