"""The margin penalty on two ranks, each with its own samples: a mean over the global batch."""

import warnings

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_reg import Linear, MarginPenalty
from tests.callbacks.spectral.test_margin import Classifier, loader, train_with_shortfall
from tests.distributed.training import half, trainer_on
from tests.models import KeepWeights
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed


class Sharded(Classifier):
    """FSDP2 shards it unevenly where the strategy asks for that."""

    def configure_model(self):
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.network[2], mesh=mesh)
            fully_shard(self.network, mesh=mesh)

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def train(strategy, target, settings):
    """Run on each rank: train on its half of every global batch of four; return weights and logged values."""
    keep = KeepWeights()
    penalty = MarginPenalty(0.1, radius=0.5, target=target, schedule=Linear(1.0, 0.5, 10))
    trainer = trainer_on(strategy, penalty, keep, **settings)
    trainer.fit(Sharded(), half(loader().dataset), loader())
    return keep.weights, trainer.callback_metrics["reg/penalty/margin"].item()


@pytest.mark.parametrize(
    ("strategy", "target"),
    # DDP runs `training_step` as a call of the LightningModule, whose result is not logits.
    [("ddp", None), ("ddp_find_unused_parameters_true", "network"), ("fsdp2", "network"), ("fsdp2", None)],
)
def test_two_ranks_equal_one_process(pool, strategy, target):
    ranks = pool.run(train, strategy, target, {"accumulate_grad_batches": 3})

    expected, terms = train_with_shortfall(Classifier(), accumulate=3, factor=lambda step: 1 - 0.5 * min(step / 10, 1))
    for weights, logged in ranks:
        assert_same_weights(weights, expected)
        assert logged == pytest.approx(terms[-1], rel=1e-5)  # the last window has one batch


def train_without_a_call():
    """Run on each rank: return the warnings of a run whose target is never called, which only DDP itself calls."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_on("ddp", MarginPenalty(0.1, radius=0.5)).fit(Classifier(), loader())
    return [str(warning.message) for warning in caught]


def test_ddp_does_not_hide_that_the_target_is_never_called(pool):
    first, _ = pool.run(train_without_a_call)

    assert sum("MarginPenalty adds nothing for 'Classifier', which was not called" in text for text in first) == 1


def train_on_two_sizes():
    """Run on each rank: return the error of a network that gets images of two sizes."""

    class Growing(Sharded):
        def loss(self, batch):
            inputs = batch[0] if self.global_step else batch[0][:, None]
            return self(inputs).square().mean()

    with pytest.raises(MisconfigurationException) as caught:
        trainer_on("fsdp2", MarginPenalty(0.1, radius=0.5, target="network")).fit(
            Growing(lambda: nn.Sequential(nn.Flatten(), *Classifier().network)), loader()
        )
    return str(caught.value)


def test_sharded_weights_with_inputs_of_several_sizes_are_refused_with_the_remedy(pool):
    assert all("inputs of one size only. Use DDP" in text for text in pool.run(train_on_two_sizes))


def refuse(strategy):
    """Run on each rank: return the error of a strategy."""
    with pytest.raises(MisconfigurationException) as caught:
        train(strategy, "network", {})
    return str(caught.value)


def test_flat_shards_are_refused_with_the_remedy(pool):
    for message in pool.run(refuse, "fsdp1"):
        assert "MarginPenalty does not support FSDP1OnCpu" in message
        assert "FSDP2 (ModelParallelStrategy)" in message
