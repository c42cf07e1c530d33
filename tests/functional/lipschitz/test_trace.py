"""Operations of a module besides calls of layers: nothing that depends on the input counts as a constant."""

import dataclasses
import math
import warnings
from collections import OrderedDict
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg import register_lipschitz_rule
from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import Calls


@dataclasses.dataclass(frozen=True)
class Output:
    logits: torch.Tensor
    hidden: object = None


class Pair(NamedTuple):
    mean: torch.Tensor
    logvar: torch.Tensor


class ModelOutput(OrderedDict):
    """Like the one of transformers: entries are also attributes."""

    def __init__(self, **entries):
        super().__init__(entries)
        vars(self).update(entries)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


class Wraps(nn.Module):
    """A linear layer, before and after which something else happens."""

    def __init__(self, after=lambda y: y, before=lambda x: x):
        super().__init__()
        self.layer, self.before, self.after = nn.Linear(4, 4), before, after

    def forward(self, x):
        return self.after(self.layer(self.before(x)))


def norm_of(network):
    return np.linalg.norm(network.layer.weight.detach().double().numpy(), 2)


OUTPUTS = {
    "dataclass": (Output, 1),
    "nested": (lambda y: {"a": [Output(y, (Pair(y, y),))]}, 3),
    "named tuple": (lambda y: Pair(y, y), 2),
    "slots": (Slotted, 1),
    "namespace": (lambda y: SimpleNamespace(y=y, name="logits"), 1),
    "model output": (lambda y: ModelOutput(logits=y, hidden_states=(y, y)), 3),
    "ordered": (lambda y: OrderedDict(a=y, b=3, c=torch.ones(2)), 1),
    "distribution": (
        lambda y: torch.distributions.Normal(y, 1.0, validate_args=False),
        2,
    ),  # its scale is broadcast with the mean
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_bound_is_for_all_tensors_wherever_they_are_in_the_output(kind):
    wrap, copies = OUTPUTS[kind]
    network = Wraps(wrap)
    report = lipschitz_bound(network, torch.randn(2, 4))
    assert report.unbounded == ()
    assert report.value == pytest.approx(math.sqrt(copies) * norm_of(network), rel=2e-5)


@pytest.mark.parametrize(
    "wrap", [lambda y: lambda: y, lambda y: (each for each in [y]), lambda y: None, lambda y: nn.Linear(1, 1)]
)
def test_values_that_may_hide_tensors_have_no_bound(wrap):
    report = lipschitz_bound(Wraps(wrap), torch.randn(2, 4))
    assert report.value == math.inf
    assert report.unbounded[0][0] == "trace"


class Twisted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x


def scripted(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(tripled)(x)


def tripled(x: torch.Tensor):
    return 3 * x


compiled = torch.compile(lambda x: 3 * x)


@pytest.mark.parametrize(
    ("before", "factor"),
    [
        (lambda x: 3 * x if isinstance(x, torch.Tensor) else x, 3),
        (lambda x: x if callable(x) else 3 * x, 3),
        (lambda x: 3 * x if torch.is_tensor(x) else x, 3),
        (Twisted.apply, 3),
        (compiled, 3),
        (lambda x: torch.utils.checkpoint.checkpoint(lambda y: 3 * y, x, use_reentrant=False), 3),
        (lambda x: 3 * x.data, 3),
        (lambda x: x + len(f"{x.shape} {x}") * 0, 1),
    ],
)
def test_code_that_tests_the_type_of_a_tensor_is_followed(before, factor):
    network = Wraps(before=before)
    report = lipschitz_bound(network, torch.randn(2, 4))
    assert report.unbounded == ()
    assert report.value == pytest.approx(factor * norm_of(network), rel=2e-5)


@pytest.mark.parametrize(
    "before",
    [
        lambda x: 3 * torch.tensor(x.numpy()),
        lambda x: 3 * torch.tensor(x.tolist()),
        scripted,
        torch.vmap(lambda row: 3 * row),
        lambda x: torch.from_numpy(np.asarray(x)),
        lambda x: torch.tensor([float(each) for each in x.flatten()]).view(2, 4),
    ],
)
def test_ways_around_the_trace_have_no_bound(before):
    report = lipschitz_bound(Wraps(before=before), torch.randn(2, 4))
    assert report.value == math.inf
    assert report.unbounded[0][0] == "trace"


class TakesOutput(nn.Module):
    def forward(self, output):
        return 5 * output.logits * output.logits.sigmoid()


def test_a_users_rule_for_a_module_that_takes_a_dataclass_is_asked():
    seen = []
    register_lipschitz_rule(TakesOutput, lambda module, output: seen.append(output.logits.shape) or 5.0)
    network = Wraps(Output)
    report = lipschitz_bound(nn.Sequential(network, TakesOutput()), torch.randn(2, 4))
    assert report.value == pytest.approx(5 * norm_of(network), rel=2e-5)
    assert seen == [(2, 4)]


def test_a_dictionary_and_labels_beside_it_are_inputs():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, batch):
            return self.layer(batch["x"]) + nn.functional.one_hot(batch["label"], 4)

    network = Critic()
    batch = {"x": torch.randn(2, 4), "label": torch.tensor([1, 3]), "name": "b"}
    for example in (batch, (batch,)):
        report = lipschitz_bound(network, example)
        assert report.unbounded == ()
        assert report.value == pytest.approx(norm_of(network), rel=2e-5)


def test_a_view_of_a_constant_that_is_overwritten_has_no_bound():
    constant = torch.zeros(2, 4)

    def function(x):
        view, _ = torch.broadcast_tensors(constant, x)
        view.add_(x)
        return constant + 0

    assert lipschitz_bound(Wraps(before=function), torch.randn(2, 4)).value == math.inf


def test_writing_into_a_copy_counts_the_old_and_the_new_values():
    def function(x):
        y = torch.zeros_like(x)
        y[:, 0] = 2 * x[:, 1]
        y[:, 1:] = x[:, :1]
        return y

    network = nn.Sequential(Wraps(before=function)).double()
    truth = np.linalg.norm(network[0].layer.weight.detach().numpy(), 2) * np.sqrt(4 + 3)
    report = lipschitz_bound(network, torch.randn(2, 4).double())
    assert report.unbounded == ()
    assert truth / 2 < report.value <= truth * (1 + 1e-6)


WEIGHT = torch.tensor([[3.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ WEIGHT.to(x), 3),
        (lambda x: x * torch.full_like(x, 2.0).exp().log(), 2),
        (lambda x: x.index_select(1, torch.tensor(0).expand_as(x[0, :2])), math.sqrt(2)),
        (lambda x: x[:, torch.ones_like(x[0], dtype=torch.long) - 1], math.sqrt(2)),
        (lambda x: torch.where(torch.zeros_like(x) > 0, x, 2 * x), math.sqrt(5)),
        (lambda x: torch.linalg.inv(WEIGHT.type_as(x)) @ x, 1),
        (lambda x: x * torch.ones_like(x).sum().item() if torch.ones_like(x).any() else x, 4),
        (lambda x: x * float(np.sum(torch.ones_like(x).numpy())), math.inf),
        (lambda x: x + torch.zeros_like(x).add_(1).mul_(x), math.inf),
        (lambda x: x * torch.zeros_like(x).copy_(x), math.inf),
        (lambda x: x * torch.ones_like(x)[:, :1].mul_(x[:, :1]), math.inf),
    ],
)
def test_what_has_only_the_shape_or_type_of_the_input_is_a_constant_until_it_is_written_into(function, expected):
    assert lipschitz_bound(Calls(function), torch.rand(2, 2)).value == pytest.approx(expected, rel=1e-4)


def _written(make, write):
    """Return a function that writes into something new."""

    def function(x):
        y = make(x)
        write(y, x)
        return y

    return function


@pytest.mark.parametrize(
    ("make", "write", "expected"),
    [
        (lambda x: torch.zeros(2, 3), lambda y, x: y[:, :2].copy_(3 * x), 3),
        (lambda x: torch.ones(2, 2), lambda y, x: y.index_add_(0, torch.tensor([0, 0]), 2 * x), 8**0.5),
        (lambda x: torch.empty(2, 2), lambda y, x: y.fill_(1.0).T.mul_(2).add_(x), 1),
        (lambda x: 1 * x, lambda y, x: y[:, 0].mul_(7), 50**0.5),
        (lambda x: 1 * x, lambda y, x: y.view(-1)[::2].mul_(0), 1),
        (lambda x: torch.zeros(2, 2), lambda y, x: y.expand(3, 2, 2)[0].copy_(x), 1),
        (lambda x: torch.zeros(2, 2), lambda y, x: torch.broadcast_tensors(y, x)[0].add_(x), 2),
        (lambda x: torch.ones(2, 2), lambda y, x: y.mul_(x).mul_(y), math.inf),
    ],
)
def test_what_is_written_into_a_view_counts_for_the_whole(make, write, expected):
    report = lipschitz_bound(Calls(_written(make, write)), torch.rand(2, 2))

    assert report.value == pytest.approx(expected, rel=1e-4)
    assert (report.unbounded == ()) == math.isfinite(expected)


def test_nothing_is_left_of_the_trace_in_what_forward_makes():
    made = []

    def function(x):
        y = torch.zeros(2)
        made.append(y)
        y[:1] = x
        return y * torch.ones(2)

    assert lipschitz_bound(Calls(function), torch.rand(1)).value == pytest.approx(1, rel=1e-4)
    made.clear()
    assert torch.equal(function(torch.ones(1)), torch.tensor([1.0, 0.0]))
    assert type(made[0]) is torch.Tensor


def test_a_bound_that_is_no_number_any_more_says_so_and_a_factor_of_zero_leaves_no_reason():
    report = lipschitz_bound(Calls(lambda x: 1e200 * (1e200 * x)), torch.zeros(1, dtype=torch.float64))
    assert report.value == math.inf
    assert "too large" in report.unbounded[0][1]
    report = lipschitz_bound(Calls(lambda x: x + 0 * x.exp()), torch.zeros(1, dtype=torch.float64))
    assert (report.value, report.unbounded) == (1, ())
