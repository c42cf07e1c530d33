"""Weight decay on two ranks: what AdamW does in one process."""

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg import WeightDecay
from tests.callbacks.decay.test_weight_decay import DECAY, KINDS, split
from tests.distributed.test_proximal import OPTIMIZERS, STRATEGIES, Module, trainer_of
from tests.models import KeepWeights, loader, samples, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed

PATTERN = "*weight"


def train(kind, strategy):
    """Run on each rank: train on its half of every global batch of four; return the whole weights."""
    keep = KeepWeights()
    strategy = STRATEGIES[strategy]() if strategy in STRATEGIES else strategy
    trainer = trainer_of(WeightDecay(DECAY, kind=kind, select=PATTERN), keep, devices=2, strategy=strategy)
    data = samples()
    sampler = DistributedSampler(data, num_replicas=2, rank=distributed.get_rank(), shuffle=False)
    trainer.fit(Module(OPTIMIZERS["adam"]), DataLoader(data, batch_size=2, sampler=sampler))
    return keep.weights


@pytest.mark.parametrize("strategy", ["ddp", "fsdp1", "fsdp2"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_end_with_the_weights_of_one_process(pool, kind, strategy):
    module = Module(OPTIMIZERS["adam"])
    trainer_of(WeightDecay(DECAY, kind=kind, select=PATTERN)).fit(module, loader())

    first, second = pool.run(train, kind, strategy)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, weights_of(module), rtol=1e-4)
    if kind == "decoupled":
        by_adamw = Module(lambda parameters: torch.optim.AdamW(split(parameters, DECAY), lr=0.02))
        trainer_of().fit(by_adamw, loader())
        assert_same_weights(first, weights_of(by_adamw), rtol=1e-4)
