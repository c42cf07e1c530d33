"""The memory of penalties for weights that FSDP2 shards: sharded like the weights, saved whole, restored."""

import warnings

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg import AnchorPenalty, Penalty
from tests.callbacks.penalties.test_memory import Consolidation, Lazy, TowardsStart
from tests.distributed.test_penalty import PATTERN
from tests.distributed.test_proximal import OPTIMIZERS, Module, trainer_of
from tests.distributed.test_spectral import Parallel
from tests.models import KeepWeights, loader, samples, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed

KINDS = {
    "elementwise": lambda mode: TowardsStart(0.5, mode=mode, select=PATTERN),
    "anchor": lambda mode: AnchorPenalty(0.1, norm="l1", mode=mode, select=PATTERN),
    "offloaded": lambda mode: AnchorPenalty(0.1, norm="l1", mode=mode, select=PATTERN, offload=True),
    "gathered": lambda mode: Consolidation(0.01, mode=mode, select=PATTERN),
}


def train(name, mode, path):
    """Run on each rank: train two epochs, the second resumed from a checkpoint of the first; return the weights."""
    sampler = DistributedSampler(samples(), num_replicas=2, rank=distributed.get_rank(), shuffle=False)
    keep = KeepWeights()
    for epochs, before in ((1, None), (2, path)):
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer = trainer_of(KINDS[name](mode), keep, devices=2, strategy=strategy, max_epochs=epochs)
        data = DataLoader(samples(), batch_size=2, sampler=sampler)
        trainer.fit(Module(OPTIMIZERS["sgd"]), data, ckpt_path=before)
        if before is None:
            trainer.save_checkpoint(path)
    return keep.weights


PARALLEL = {
    "anchor": lambda mode: AnchorPenalty(0.1, norm="l1", mode=mode),
    "offloaded": lambda mode: AnchorPenalty(0.1, mode=mode, offload=True),
    "own, by entry": lambda mode: TowardsStart(0.5, mode=mode),
    "own, whole": lambda mode: Whole(0.01, mode=mode),
}


class Whole(Penalty):
    """Needs whole weights: the distance of each weight from where it started, not of its parts."""

    def remember(self, weights):
        return {name: torch.stack([weight, 1 + weight.abs()]) for name, weight in weights.items()}

    def penalty(self, weights, memory):
        return sum((scale * (w - start)).norm() ** 3 for w, (start, scale) in zip(weights, memory, strict=True))


def train_in_parts(name, mode, path):
    """Run on each rank: two epochs with layers split in two, the second resumed; return the weights."""
    keep = KeepWeights()
    for epochs, before in ((1, None), (2, path)):
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
        trainer = trainer_of(PARALLEL[name](mode), keep, devices=2, strategy=strategy, max_epochs=epochs)
        trainer.fit(Parallel(), loader(dtype=torch.float64), ckpt_path=before)
        if before is None:
            trainer.save_checkpoint(path)
    return keep.weights


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("anchor", "loss"),
        ("anchor", "proximal"),
        ("offloaded", "grad"),
        ("own, by entry", "loss"),
        ("own, by entry", "grad"),
        ("own, whole", "loss"),
        ("own, whole", "grad"),
    ],
)
def test_a_resumed_run_with_tensor_parallelism_is_an_uninterrupted_one_of_one_process(pool, tmp_path, name, mode):
    module = Parallel()
    trainer_of(PARALLEL[name](mode), max_epochs=2).fit(module, loader(dtype=torch.float64))

    first, second = pool.run(train_in_parts, name, mode, str(tmp_path / "half.ckpt"))

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, weights_of(module), rtol=1e-6)
    without = Parallel()
    trainer_of(max_epochs=2).fit(without, loader(dtype=torch.float64))
    assert (weights_of(without)["network.0.weight"] - first["network.0.weight"]).norm() > 1e-3


def save_what_an_attribute_holds(path):
    """Run on each rank: save a checkpoint; return the warnings."""
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = trainer_of(Lazy(0.5, select=PATTERN), devices=2, strategy=strategy, max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Module(OPTIMIZERS["sgd"]), DataLoader(samples(), batch_size=14))
        trainer.save_checkpoint(path)
    return [str(warning.message) for warning in caught]


def test_tensors_in_attributes_with_sharded_weights_warn(pool, tmp_path):
    first, _ = pool.run(save_what_an_attribute_holds, str(tmp_path / "half.ckpt"))

    assert any("Lazy keeps tensors in `self.starts`" in message and "`remember`" in message for message in first)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("elementwise", "loss"),
        ("anchor", "proximal"),
        ("offloaded", "grad"),
        ("offloaded", "proximal"),
        ("gathered", "grad"),
    ],
)
def test_a_resumed_run_on_two_ranks_is_an_uninterrupted_one_of_one_process(pool, tmp_path, name, mode):
    module = Module(OPTIMIZERS["sgd"])
    trainer_of(KINDS[name](mode), max_epochs=2).fit(module, loader())

    first, second = pool.run(train, name, mode, str(tmp_path / "half.ckpt"))

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, weights_of(module), rtol=1e-5)
