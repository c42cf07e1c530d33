"""Bounds of layers that come after the time is up, against NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import lipschitz_bound
from lightning_reg.functional.lipschitz import budget as budgets
from lightning_reg.functional.lipschitz.budget import Speed, cheap_norm, in_time, within

NEVER, AT_ONCE = 1e9, -1.0


def matrices():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((1, 1), (1, 9), (9, 1), (30, 40), (40, 30)):
        matrix = torch.randn(rows, columns, generator=generator)
        yield from (matrix, matrix.abs(), torch.ones(rows, columns), torch.outer(matrix[:, 0], matrix[0]))
        yield from (matrix.double() * 1e200, matrix.double() * 1e-200, matrix * 1e-42, matrix * 0)
        yield matrix * (torch.rand(rows, 1, generator=generator) < 0.3)
    yield torch.eye(20)


@pytest.mark.parametrize("matrix", list(matrices()), ids=lambda matrix: "x".join(map(str, matrix.shape)))
def test_the_cheap_bound_of_a_matrix_is_above_its_norm_and_no_more_than_either_formula(matrix):
    scale = matrix.abs().max().item() or 1.0
    entries = matrix.double().numpy() / scale
    schur = math.sqrt(np.linalg.norm(entries, 1) * np.linalg.norm(entries, np.inf))

    bound = cheap_norm(matrix) / scale

    assert np.linalg.norm(entries, 2) <= bound <= min(schur, np.linalg.norm(entries)) * (1 + 1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_cheap_bound_of_a_matrix_that_is_not_finite_is_nan(value):
    assert math.isnan(cheap_norm(torch.tensor([[1.0, value], [0.0, 2.0]])))


def network():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.Linear(8, 8),
    )
    return nn.Sequential(*layers).eval()


def test_norms_that_begin_after_the_limit_are_cheap_and_counted():
    module, image = network(), torch.randn(1, 3, 4, 4)
    with within(NEVER) as budget:
        exact = lipschitz_bound(module, image)
    assert budget.cheap == 0
    assert exact == lipschitz_bound(module, image)

    with within(AT_ONCE) as budget:
        cheap = lipschitz_bound(module, image)

    assert budget.cheap == 4  # the convolution once more with batch normalization
    kernel, matrix = module[0].weight.detach().numpy(), module[5].weight.detach().numpy()
    assert cheap.per_layer["0"] == pytest.approx(3 * np.linalg.norm(kernel.reshape(6, -1), 2), rel=1e-4)
    schur = math.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf))
    assert cheap.per_layer["5"] == pytest.approx(min(schur, np.linalg.norm(matrix)), rel=1e-6)
    assert exact.value < cheap.value < math.inf
    assert lipschitz_bound(module, image) == exact


def test_the_norms_of_attention_count_too():
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True))
    rows = torch.randn(1, 3, 8)
    exact = lipschitz_bound(module, rows)
    with within(AT_ONCE) as budget:
        cheap = lipschitz_bound(module, rows)
    # Three projections, two heads of each, and the output. The values' heads and the output also bound the size.
    assert budget.cheap == 2 + 10 + 3
    assert exact.value < cheap.value < math.inf


class Clock:
    """Time that passes only while norms are computed."""

    def __init__(self, monkeypatch, seconds_of_trial=0.0):
        self.now = 0.0
        monkeypatch.setattr(budgets, "time", self)
        monkeypatch.setattr(budgets, "norm_upwards", lambda _: self.wait(seconds_of_trial))

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        return "exact"

    def norm(self, work, seconds):
        return in_time(lambda: self.wait(seconds), lambda: "cheap", work, torch.device("cpu"))


def test_a_norm_that_would_exceed_the_limit_at_the_speed_of_the_ones_before_is_cheap(monkeypatch):
    clock = Clock(monkeypatch)

    with within(100) as budget:
        assert clock.norm(1e10, seconds=10) == "exact"
        assert clock.norm(1e11, seconds=100) == "cheap"  # 90 seconds are left
        assert clock.norm(5e10, seconds=50) == "exact"
        assert clock.norm(5e10, seconds=50) == "cheap"
        assert clock.norm(3e10, seconds=30) == "exact"

    assert budget.used() == 90
    assert budget.cheap == 2


def test_small_norms_whose_time_is_that_of_their_calls_do_not_tell_the_speed(monkeypatch):
    clock = Clock(monkeypatch, seconds_of_trial=1)

    with within(100):
        assert [clock.norm(1e4, seconds=0.1) for _ in range(20)] == ["exact"] * 20  # a billion of these take a day
        assert clock.norm(1e11, seconds=10) == "exact"


@pytest.mark.parametrize(("seconds_of_trial", "expected"), [(0.1, "exact"), (10, "cheap")])
def test_without_a_norm_before_it_a_large_one_waits_for_a_trial(monkeypatch, seconds_of_trial, expected):
    clock, speed = Clock(monkeypatch, seconds_of_trial), Speed()

    for _ in range(2):  # one trial for both
        start = clock.now
        with within(50, speed) as budget:
            assert clock.norm(1e11, seconds=6) == expected
        assert budget.used() == clock.now - start

    assert clock.now == pytest.approx(seconds_of_trial + (12 if expected == "exact" else 0))


def test_after_the_limit_there_is_no_trial(monkeypatch):
    clock = Clock(monkeypatch, seconds_of_trial=5)

    with within(AT_ONCE) as budget:
        assert clock.norm(1e11, seconds=10) == "cheap"

    assert (budget.cheap, clock.now) == (1, 0)


WORK = {
    "a matrix": (nn.Linear(300, 300), (300,)),
    "a larger matrix": (nn.Linear(1200, 1100), (1200,)),
    "a small image": (nn.Conv2d(8, 8, 3), (8, 5, 5)),
    "a large image": (nn.Conv2d(80, 70, 3, stride=2, groups=1), (80, 40, 40)),
    "groups": (nn.Conv2d(32, 32, 3, groups=4), (32, 30, 30)),
    "transposed": (nn.ConvTranspose2d(70, 80, 3, stride=2), (70, 20, 20)),
}


@pytest.mark.parametrize("kind", WORK)
def test_the_work_of_a_layer_grows_with_its_size(kind):
    layer, shape = WORK[kind]

    works = []
    for module, factor in ((layer, 1), (wider(layer), 2)):
        with within(NEVER) as budget:
            budget.run = lambda exact, cheap, work, device: works.append(work) or cheap()
            lipschitz_bound(module, torch.zeros(1, factor * shape[0], *shape[1:]))

    small, large = works
    assert 3 * small < large < 9 * small  # products and factorizations take eight times as long, sums of taps four


def wider(layer):
    """Return a layer like this one with twice the inputs and outputs."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(2 * layer.in_features, 2 * layer.out_features)
    channels = 2 * layer.in_channels, 2 * layer.out_channels
    return type(layer)(*channels, layer.kernel_size, layer.stride, groups=layer.groups)
