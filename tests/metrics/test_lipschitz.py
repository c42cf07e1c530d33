"""The largest and the mean Jacobian norm of all samples, however they come."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from lightning_reg.metrics import LipschitzLowerBound


def stretch(factors):
    """Return a function whose Jacobian at a sample is the diagonal of `factors` times the sample's first entry."""
    return lambda x: x * x[:, :1].detach() * torch.tensor(factors)


SAMPLES = torch.tensor([[2.0, 5.0], [3.0, 7.0], [-4.0, 1.0]])  # norms 2, 3, 4 times the largest factor


@pytest.mark.parametrize(("reduction", "expected"), [("max", 8.0), ("mean", 6.0)])
def test_samples_may_come_at_once_or_one_after_the_other(reduction, expected):
    at_once, in_turn = LipschitzLowerBound(reduction), LipschitzLowerBound(reduction)

    at_once.update(stretch([1.0, 2.0]), SAMPLES)
    for sample in SAMPLES:
        in_turn.update(stretch([1.0, 2.0]), sample[None])

    assert at_once.compute().shape == ()
    assert at_once.compute().item() == in_turn.compute().item() == pytest.approx(expected)


def test_forward_gives_the_value_of_its_samples_and_compute_the_value_of_all():
    bound, mean = LipschitzLowerBound(), LipschitzLowerBound("mean")
    fn = stretch([1.0, 1.0])

    assert bound(fn, SAMPLES[1:]).item() == 4
    assert bound(fn, SAMPLES[:1]).item() == 2
    assert bound.compute().item() == 4
    assert mean(fn, SAMPLES[:2]).item() == 2.5
    assert mean(fn, SAMPLES[2:]).item() == 4
    assert mean.compute().item() == 3


def test_both_in_one_collection_share_their_samples():
    calls = []

    def fn(x):
        calls.append(len(x))
        return x * x

    collection = MetricCollection({"bound": LipschitzLowerBound(), "mean": LipschitzLowerBound("mean")})
    for sample in (1.0, 2.0):
        collection.update(fn, torch.tensor([[sample]]))

    assert {name: value.item() for name, value in collection.compute().items()} == {"bound": 4, "mean": 3}
    assert calls == [1, 1, 1]  # twice for the first sample: what may be shared is then known


@pytest.mark.parametrize("again", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy, lambda m: m.clone()])
def test_copies_go_on_where_it_stopped_and_reset_forgets(again):
    metric = LipschitzLowerBound()
    metric.update(torch.square, SAMPLES)

    assert again(metric)(torch.square, torch.ones(1, 2)).item() == 2
    assert again(metric).compute().item() == 14
    metric.reset()
    assert metric(torch.square, torch.ones(1, 2)).item() == 2


def test_a_module_is_evaluated_as_in_validation_and_left_in_its_mode():
    network = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2))
    metric = LipschitzLowerBound()

    with torch.inference_mode():
        metric.update(network, SAMPLES)

    assert metric.compute().item() == pytest.approx(torch.linalg.matrix_norm(network[1].weight, 2).item(), rel=1e-5)
    assert all(part.training for part in network.modules())


def test_more_iterations_come_nearer():
    torch.manual_seed(0)
    matrix = torch.randn(50, 50)
    values = [LipschitzLowerBound(iterations=n)(lambda x: x @ matrix, torch.ones(1, 50)).item() for n in (1, 3, 50)]

    assert values == sorted(values)
    assert values[0] < 0.9 * values[2]
    assert values[2] == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-5)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_one_sample_that_is_nan_makes_the_value_nan(reduction):
    metric = LipschitzLowerBound(reduction)
    metric.update(torch.square, torch.tensor([[1.0], [torch.nan]]))
    metric.update(torch.square, torch.tensor([[3.0]]))

    assert metric.compute().isnan()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"reduction": "sum"}, ValueError, "`reduction` must be one of 'max', 'mean', got 'sum'"),
        ({"reduction": None}, TypeError, "`reduction` must be a string"),
        ({"iterations": 0}, ValueError, "`iterations` must be an int >= 1, got 0"),
        ({"norm": 2}, ValueError, "Unexpected keyword arguments: `norm`"),
    ],
)
def test_bad_arguments_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        LipschitzLowerBound(**settings)
