"""Conventions of torchmetrics that every metric follows."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from lightning_reg import metrics
from lightning_reg.metrics import Sparsity, SpectralNorm, StableRank, WeightNorm

METRICS = {
    "weight_norm": WeightNorm,
    "sparsity": lambda: Sparsity(0.3),
    "sparsity_of_units": lambda: Sparsity(0.9, dim=0),
    "stable_rank": StableRank,
    "stable_rank_estimate": lambda: StableRank(iterations=8),
    "spectral_norm": SpectralNorm,
    "spectral_norm_estimate": lambda: SpectralNorm(iterations=8),
    "spectral_norm_of_any_size": lambda: SpectralNorm(iterations=8, input_size="any"),
}
every_metric = pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)


def matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, generator=generator), torch.randn(2, 6, generator=generator)]


def test_every_exported_metric_is_here():
    of_weights = {type(make()).__name__ for make in METRICS.values()}
    of_samples = {"CertifiedAccuracy", "LipschitzLowerBound"}
    assert of_weights | of_samples == set(metrics.__all__)


@every_metric
def test_its_repr_makes_it_again(make):
    again = eval(repr(make()), vars(metrics))

    assert repr(again) == repr(make())
    torch.testing.assert_close(again(matrices()), make()(matrices()))


def test_its_repr_shows_its_settings():
    assert repr(Sparsity(0.9, dim=0)) == "Sparsity(threshold=0.9, dim=0)"


@every_metric
def test_weights_may_come_at_once_or_one_after_the_other(make):
    at_once, in_turn, as_module = make(), make(), make()

    at_once.update(iter(matrices()))
    for matrix in matrices():
        in_turn.update(matrix)
    module = nn.Module()
    module.first, module.second = map(nn.Parameter, matrices())
    module.bias = nn.Parameter(torch.full((5,), 100.0))  # one dimension: no weight
    as_module.update(module)

    assert at_once.compute().shape == ()
    torch.testing.assert_close(in_turn.compute(), at_once.compute())
    torch.testing.assert_close(as_module.compute(), at_once.compute())


@every_metric
def test_forward_gives_the_value_of_its_argument_and_compute_the_value_of_all(make):
    first, second = matrices()
    metric = make()

    torch.testing.assert_close(metric(first), make()(first))
    torch.testing.assert_close(metric(second), make()(second))
    expected = make()
    expected.update([first, second])
    torch.testing.assert_close(metric.compute(), expected.compute())


@every_metric
def test_reset_forgets(make):
    metric = make()
    metric.update(100 * matrices()[0])
    metric.reset()

    torch.testing.assert_close(metric(matrices()[1]), make()(matrices()[1]))


@every_metric
@pytest.mark.parametrize(
    "again", [lambda metric: pickle.loads(pickle.dumps(metric)), copy.deepcopy, lambda m: m.clone()]
)
def test_copies_go_on_where_it_stopped(make, again):
    metric = make()
    metric.update(matrices()[0])

    copied = again(metric)
    metric.update(matrices()[1])
    copied.update(matrices()[1])

    torch.testing.assert_close(copied.compute(), metric.compute())


@pytest.mark.parametrize("make", [WeightNorm, Sparsity])
def test_it_moves_to_where_its_weights_are(make):
    weight = torch.ones(2, 2, device="meta")

    value = make().to("meta")(weight)

    assert value.device.type == "meta"


def test_a_collection_takes_all_of_them():
    collection = MetricCollection({name: make() for name, make in METRICS.items()})

    collection.update(matrices())

    values = collection.compute()
    for name, make in METRICS.items():
        torch.testing.assert_close(values[name], make()(matrices()))


@every_metric
def test_gradients_are_not_tracked(make):
    assert not make()([matrix.requires_grad_() for matrix in matrices()]).requires_grad


@every_metric
def test_an_argument_without_weights_is_refused(make):
    with pytest.raises(
        TypeError, match="`weights` must be a tensor, an iterable of tensors or a module, got one with 3"
    ):
        make().update([3])
    with pytest.raises(
        ValueError, match="`weights` must be a module with a weight of two or more dimensions, got a LayerNorm without"
    ):
        make().update(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `norm`"):
        type(make())(norm=3)


@every_metric
def test_nan_weights_give_nan_or_count_as_no_zeros(make):
    found, without = (make()(torch.tensor([[number, 0.1], [0.0, 0.1]])).item() for number in (torch.nan, 1.0))

    assert found == without if isinstance(make(), Sparsity) else math.isnan(found)
