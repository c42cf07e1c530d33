"""What the walk does not know is never taken for a constant: sizes, caught errors, modes, classes of tensors."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import Calls


def _by_size(make):
    """Return a function that multiplies by the size of something made from the place of its largest entry."""
    return lambda x: x * (1 + make(x, x.argmax()).shape[0])


SIZED = {
    "arange": lambda x, n: torch.arange(n),
    "float arange": lambda x, n: torch.arange(0.0, x.abs().sum()),
    "slice": lambda x, n: x.flatten()[:n],
    "zeros": lambda x, n: torch.zeros(n),
    "new zeros": lambda x, n: x.new_zeros(n),
    "expanded": lambda x, n: torch.ones(1).expand(n + 1),
    "repeated": lambda x, n: torch.ones(1).repeat(n + 1),
    "narrow": lambda x, n: torch.ones(9).narrow(0, 0, n),
    "linspace": lambda x, n: torch.linspace(0, 1, n),
    "parts": lambda x, n: torch.tensor_split(torch.ones(9), n[None])[0],
    "largest": lambda x, n: torch.ones(9).topk(n).values,
    "padded": lambda x, n: F.pad(torch.ones(9), (0, n)),
    "places": lambda x, n: (x > 0).nonzero(as_tuple=True)[0],
    "number of rows": lambda x, n: torch.ones(sum(1 for _ in x[x > 0])),
    "view of what is written": lambda x, n: _written(x[x > 0]),
}


def _written(entries):
    whole = entries.view(-1, 1)
    entries.mul_(2)
    return whole


@pytest.mark.parametrize("name", SIZED)
def test_a_size_that_the_values_of_the_input_decide_is_no_constant(name):
    report = lipschitz_bound(Calls(_by_size(SIZED[name])), torch.rand(2, 3))
    assert report.value == math.inf
    assert any("depend" in reason for _, reason in report.unbounded)


def by_item(x):
    try:
        return x if x.sum().item() < 100 else 50 * x
    except Exception:
        return x


def by_bool(x):
    try:
        return 50 * x if x.sum() > 100 else x
    except:  # noqa: E722
        return x


def by_factorization(x):
    try:
        return 50 * torch.linalg.cholesky(x @ x.mT - 1)
    except torch.linalg.LinAlgError:
        return x


def by_script(x):
    try:
        return torch.vmap(lambda row: row.clamp(max=100.0))(x)
    except Exception:
        return 0 * x + x


@pytest.mark.parametrize("function", [by_item, by_bool, by_factorization, by_script])
def test_an_error_that_forward_catches_is_not_forgotten(function):
    report = lipschitz_bound(Calls(function), torch.eye(2) / 2)
    assert report.value == math.inf
    assert report.unbounded[0][0] == "trace"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.atleast_1d([x, 3 * x]),
        lambda x: torch.atleast_2d((x, 3 * x)),
        lambda x: torch.atleast_3d(x, 3 * x),
    ],
)
def test_each_of_several_tensors_counts(function):
    assert lipschitz_bound(Calls(function), torch.rand(2)).value >= math.sqrt(10)


def routed(x):
    values, places = x.topk(2)
    return values * torch.eye(3)[places].sum((1, 2))[:, None]


def routed_by_loops(x):
    for row in (x.argmax(1) == 0).nonzero():
        x = x + row
    return x


@pytest.mark.parametrize(("function", "name"), [(routed, "topk"), (routed_by_loops, "argmax")])
def test_what_jumps_where_two_entries_are_equal_is_named(function, name):
    report = lipschitz_bound(Calls(function), torch.eye(2, 3))
    assert report.value == math.inf
    told = [" ".join(pair) for pair in report.unbounded]
    assert any(name in each and "register_lipschitz_rule" in each for each in told)


def test_rows_of_a_table_that_depends_on_the_input_count_as_often_as_they_are_taken():
    places = torch.tensor([0, 2, 2, 2])
    report = lipschitz_bound(Calls(lambda x: F.embedding(places, x)), torch.rand(3, 2))
    assert report.value == pytest.approx(math.sqrt(3), rel=1e-4)
    assert lipschitz_bound(Calls(lambda x: F.embedding(x.argmax(1), x)), torch.rand(3, 2)).value == math.inf


class Sets(nn.Module):
    """A normalization whose mode `forward` sets."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm.train()(x)


def test_a_mode_that_forward_sets_counts():
    report = lipschitz_bound(Sets(nn.BatchNorm1d(3)), torch.rand(2, 3))
    assert report.value == math.inf
    assert "batch statistics" in report.unbounded[0][1]
    norm = nn.InstanceNorm1d(3, track_running_stats=True, eps=0.01)
    assert lipschitz_bound(Sets(norm), torch.rand(2, 3, 4)).value == pytest.approx(10, rel=1e-4)


class Tenfold(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 10 * result.as_subclass(torch.Tensor) if func in (torch.Tensor.mul, F.linear) else result


def test_a_class_of_tensors_that_defines_its_own_operations_has_no_bound():
    weight = torch.eye(3).as_subclass(Tenfold)
    layer = nn.Linear(3, 3, bias=False)
    layer.weight = nn.Parameter(weight)
    for network in (Calls(lambda x: x * weight), Calls(lambda x: F.linear(x, weight)), layer):
        report = lipschitz_bound(network, torch.rand(3, 3))
        assert report.value == math.inf
        assert "Tenfold" in report.unbounded[0][1]


class Tagged(torch.Tensor):
    """Like the images of torchvision: a tensor with a note."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def test_an_example_of_a_class_of_its_own_counts_as_a_plain_tensor():
    assert lipschitz_bound(nn.Identity(), torch.rand(2, 3).as_subclass(Tagged)).value == pytest.approx(1, rel=1e-4)
    assert lipschitz_bound(Calls(lambda x: 3 * x), torch.rand(2).as_subclass(Tagged)).value == pytest.approx(
        3, rel=1e-4
    )


def test_a_result_that_is_written_into_a_given_tensor_counts():
    def function(x):
        made = torch.empty(2, 2)
        torch.mul(x, 3.0, out=made)
        torch.add(x[:, :1], 1.0, out=made[:, :1])
        return made

    report = lipschitz_bound(Calls(function), torch.rand(2, 2))
    assert report.unbounded == ()
    assert 3 <= report.value <= math.sqrt(10) * (1 + 1e-4)
