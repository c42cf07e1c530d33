"""The memory of penalties for weights that FSDP2 shards: sharded like the weights, saved whole, restored."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_reg import AnchorPenalty, Penalty
from tests.callbacks.penalties.test_memory import Consolidation, Lazy, TowardsStart
from tests.distributed.test_spectral import Parallel
from tests.distributed.training import PATTERN, Module, half, trainer_on
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
    keep = KeepWeights()
    for epochs, before in ((1, None), (2, path)):
        trainer = trainer_on("fsdp2", KINDS[name](mode), keep, max_epochs=epochs)
        trainer.fit(Module(), half(), ckpt_path=before)
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
        trainer = trainer_on("tensor parallel", PARALLEL[name](mode), keep, max_epochs=epochs)
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
    trainer_on(None, PARALLEL[name](mode)).fit(module, loader(dtype=torch.float64))

    first, second = pool.run(train_in_parts, name, mode, str(tmp_path / "half.ckpt"))

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, weights_of(module), rtol=1e-6)
    without = Parallel()
    trainer_on(None).fit(without, loader(dtype=torch.float64))
    assert (weights_of(without)["network.0.weight"] - first["network.0.weight"]).norm() > 1e-3


def save_what_an_attribute_holds(path):
    """Run on each rank: save a checkpoint; return the warnings."""
    trainer = trainer_on("fsdp2", Lazy(0.5, select=PATTERN), max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Module(), DataLoader(samples(), batch_size=14))
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
    module = Module()
    trainer_on(None, KINDS[name](mode)).fit(module, loader())

    first, second = pool.run(train, name, mode, str(tmp_path / "half.ckpt"))

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, weights_of(module), rtol=1e-5)
