"""Parts of one value together change no more than it does: activations that sort, chunks, two signs."""

import math

import pytest
import torch
from torch import nn

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import Calls
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at


def of_halves(function):
    return lambda x: function(*x.chunk(2, 1))


def group_sort_2(x):
    pairs = x.view(len(x), -1, 2)
    return torch.cat([pairs.min(2, keepdim=True)[0], pairs.max(2, keepdim=True)[0]], 2).view(x.shape)


def change_between(x):
    y = 1 * x
    first = y[:, :3].sin()
    y.mul_(-1)
    return torch.cat([first, y[:, 3:]], 1)


# Functions of six entries, with their Lipschitz constants.
TOGETHER = {
    "sorted pairs": (group_sort_2, 1),
    "ends": (lambda x: torch.stack([x.amax(1), x.amin(1)]), 1),
    "ends of all": (lambda x: torch.stack([x.max(), x.min()]), 1),
    "maximum and minimum": (
        of_halves(lambda a, b: torch.cat([torch.maximum(a, b), torch.min(b, a)], 1)),
        1,
    ),
    "maximum alone": (of_halves(torch.maximum), 1),
    "slices": (lambda x: torch.cat([x[:, 1::2], x[:, ::2]], 1), 1),
    "three chunks": (lambda x: torch.cat([each.tanh() for each in x.split(2, 1)], 1), 1),
    "functions of chunks": (of_halves(lambda a, b: torch.cat([3 * a.tanh(), b.relu()], 1)), 3),
    "views of chunks": (of_halves(lambda a, b: torch.stack([a.t().flatten(), b.reshape(-1)])), 1),
    "both signs": (lambda x: torch.cat([x.relu(), (-x).relu()], 1), 1),
    "a chunk that is expanded": (lambda x: torch.cat([x[:, :1].expand(1, 2), x[:, 1:]], 1), math.sqrt(2)),
    # These count twice.
    "one end twice": (lambda x: torch.stack([x.amax(1), x.amax(1)]), math.sqrt(2)),
    "ends of one entry": (lambda x: torch.stack([x[:, :1].amax(1), x[:, :1].amin(1)]), math.sqrt(2)),
    "ends along two dimensions": (lambda x: torch.cat([(y := x.view(2, 3)).amax(0), y.amin(1)]), math.sqrt(2)),
    "slices that overlap": (lambda x: torch.cat([x[:, :4], x[:, 3:]], 1), math.sqrt(2)),
    "one sign twice": (lambda x: torch.cat([x.relu(), x.relu()], 1), math.sqrt(2)),
    "another than the other sign": (lambda x: torch.cat([x.relu(), (-x + 1).relu()], 1), math.sqrt(2)),
    "the sign of a function": (lambda x: torch.cat([x.relu(), ((-x).sin() + 1 - 2).add(2).relu()], 1), math.sqrt(2)),
    "the sign turned back": (lambda x: torch.cat([x.relu(), (-x * -1).relu()], 1), math.sqrt(2)),
    "one sign, and all": (lambda x: torch.cat([x.relu(), x], 1), math.sqrt(2)),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_parts_count_together_and_what_overlaps_counts_twice(name):
    function, constant = TOGETHER[name]
    network = Calls(function)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    bound = lipschitz_bound(network, example).value
    assert bound == pytest.approx(constant)
    points = [torch.randn(6, generator=generator, dtype=torch.float64) * 0.1 for _ in range(20)]
    truth = max(jacobian_norm_at(flat_function(network, [example])[0], point) for point in points)
    # Attained, up to the slope of tanh at these points.
    assert 0.97 * constant <= truth <= bound * (1 + 1e-12)


def test_what_changes_in_place_between_is_no_part_of_the_same_value():
    network, example = Calls(change_between), torch.zeros(1, 6, dtype=torch.float64)
    assert lipschitz_bound(network, example).value == pytest.approx(math.sqrt(2))


def test_networks_of_orthogonal_layers_that_sort_have_bound_one():
    torch.manual_seed(0)
    layers = [nn.init.orthogonal_(nn.Linear(6, 6, bias=False).weight.double()) for _ in range(4)]
    network = Calls(lambda x: group_sort_2(group_sort_2(x @ layers[0].mT) @ layers[1].mT) @ layers[2].mT)
    assert lipschitz_bound(network, torch.randn(3, 6).double()).value == pytest.approx(1)
