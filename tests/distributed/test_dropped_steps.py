"""Batches that all ranks drop: no mode asks anything of the weights, on two ranks as on one."""

import pytest
from lightning.pytorch import Trainer
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg import L1Penalty
from tests.callbacks.penalties.test_dropped_steps import STRENGTH, sgd, train_by_hand
from tests.distributed.test_penalty import PATTERN, STRATEGIES, Module
from tests.models import KeepWeights, samples
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed


class Dropping(Module):
    dropped = (0, 1, 4)

    def __init__(self):
        super().__init__()
        self.optimizer_factory = sgd

    def training_step(self, batch, batch_idx):
        self.batch_idx = batch_idx
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        if self.batch_idx in self.dropped:
            self.zero_grad()


def train(mode, strategy, window):
    """Run on each rank: train on its half of every global batch of four; return weights."""
    keep = KeepWeights()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=STRATEGIES[strategy]() if strategy in STRATEGIES else strategy,
        callbacks=[L1Penalty(STRENGTH, mode=mode, select=PATTERN), keep],
        max_epochs=2,
        accumulate_grad_batches=window,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = samples()
    sampler = DistributedSampler(data, num_replicas=2, rank=distributed.get_rank(), shuffle=False)
    trainer.fit(Dropping(), DataLoader(data, batch_size=2, sampler=sampler))
    return keep.weights


@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
@pytest.mark.parametrize(("strategy", "window"), [("ddp", 1), ("ddp", 2), ("fsdp2", 1)])
def test_two_ranks_are_the_loop_that_leaves_the_batch_out(pool, mode, strategy, window):
    ranks = pool.run(train, mode, strategy, window)

    expected = train_by_hand(Dropping(), window, mode, wipes=True)
    for weights in ranks:
        assert_same_weights(weights, expected, rtol=1e-5)
