"""Batches that all ranks drop: no mode asks anything of the weights, on two ranks as on one."""

import pytest

from lightning_reg import L1Penalty
from tests.callbacks.penalties.test_dropped_steps import STRENGTH, sgd, train_without_dropped
from tests.distributed.training import PATTERN, Module, half, trainer_on
from tests.models import KeepWeights
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
    penalty = L1Penalty(STRENGTH, mode=mode, select=PATTERN)
    trainer_on(strategy, penalty, keep, accumulate_grad_batches=window).fit(Dropping(), half())
    return keep.weights


@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
@pytest.mark.parametrize(("strategy", "window"), [("ddp", 1), ("ddp", 2), ("fsdp2", 1)])
def test_two_ranks_are_the_loop_that_leaves_the_batch_out(pool, mode, strategy, window):
    ranks = pool.run(train, mode, strategy, window)

    expected = train_without_dropped(Dropping(), window, mode, wipes=True)
    for weights in ranks:
        assert_same_weights(weights, expected, rtol=1e-5)
