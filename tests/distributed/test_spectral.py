"""Spectral control in two processes: as in one, and the same on both."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_reg import SpectralConstraint, SpectralNormalization, SpectralNormPenalty
from tests.callbacks.spectral.norms import norm, train_normalized
from tests.distributed.training import Module, half, trainer_on
from tests.models import KeepWeights, Regressor, loader, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed

PATTERN = "network.*.weight"
CALLBACKS = {
    "normalization": lambda: SpectralNormalization(select=PATTERN, power_iterations=20),
    "constraint": lambda: SpectralConstraint(0.5, select=PATTERN),
    "penalty": lambda: SpectralNormPenalty(0.3, select=PATTERN, mode="grad"),
    "penalty in the loss": lambda: SpectralNormPenalty(0.3, select=PATTERN),
}


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2) * torch.tensor([0.1, 0.3, 1.0, 3.0])[:, None, None])

    def forward(self, inputs):
        return torch.einsum("eoi,bi->beo", self.weight, inputs.flatten(1)[:, :2]).tanh()


class Mixture(Module):
    """Has stacked experts besides, of which FSDP2 gives two to each rank."""

    def __init__(self):
        super().__init__()
        self.network.experts = Experts()

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.network.experts, mesh=self.device_mesh["data_parallel"])
        super().configure_model()

    def loss(self, batch):
        return super().loss(batch) + self.network.experts(batch[0]).square().mean()


class EachStep(Callback):
    """Keeps the whole weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(weights_of(pl_module))


def train(name, strategy, fp16=False, module_type=Module):
    """Run on each rank: train on its half of every global batch of four; return the weights after each step."""
    steps, keep = EachStep(), KeepWeights()
    trainer_on(strategy, CALLBACKS[name](), steps, keep, fp16=fp16).fit(module_type(), half(), loader())
    return [*steps.weights, keep.weights]


def alone(name, module_type=Module):
    """Train in one process on the global batches."""
    keep = KeepWeights()
    trainer_on(None, CALLBACKS[name](), keep).fit(module_type(), loader())
    return keep.weights


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_does_and_stay_equal(name, strategy, pool):
    first, second = pool.run(train, name, strategy)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert len(first) == 15
    expected = train_normalized(Module(), loader()) if name == "normalization" else alone(name)
    assert_same_weights(first[-1], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["normalization", "constraint", "penalty"])
def test_stacked_experts_that_are_spread_over_ranks_train_as_in_one_process(name, pool):
    first, second = pool.run(train, name, "fsdp2", False, Mixture)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first[-1], alone(name, Mixture), rtol=1e-4)


def test_fp16_in_two_processes_keeps_them_equal(pool):
    first, second = pool.run(train, "normalization", "ddp", True)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first[-1], train_normalized(Module(), loader(), autocast=torch.float16), rtol=0.02)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_constraint_holds_after_every_step(strategy, pool):
    steps, _ = pool.run(train, "constraint", strategy)

    for weights in steps:
        for name, weight in weights.items():
            if weight.ndim > 1:
                assert norm(nn.Linear(1, 1), weight).item() <= 0.5 * 1.0001, name


def refused(name):
    with pytest.raises(MisconfigurationException) as error:
        trainer_on("fsdp1", CALLBACKS[name]()).fit(Module(), loader())
    return str(error.value)


@pytest.mark.parametrize("name", ["normalization", "constraint", "penalty"])
def test_flat_shards_are_refused_with_a_remedy(name, pool):
    for message in pool.run(refused, name):
        assert "FSDP2" in message


class Parallel(Regressor):
    """Its layers are split over ranks, by columns and by rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def configure_model(self):
        if self.device_mesh is not None:
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(self.network, self.device_mesh["tensor_parallel"], plan)


def train_in_parts(name):
    """Run on each rank: train with the tensors of layers split in two; return the whole weights at the end."""
    keep = KeepWeights()
    trainer_on("tensor parallel", CALLBACKS[name](), keep).fit(Parallel(), loader(dtype=torch.float64))
    return keep.weights


@pytest.mark.parametrize("name", ["normalization", "constraint", "penalty"])
def test_tensor_parallelism_trains_as_one_process_does(name, pool):
    first, second = pool.run(train_in_parts, name)
    torch.testing.assert_close(first, second, rtol=0, atol=0)

    keep = KeepWeights()
    trainer_on(None, CALLBACKS[name](), keep).fit(Parallel(), loader(dtype=torch.float64))
    assert_same_weights(first, keep.weights, rtol=1e-7)
