"""Weight decay on two ranks: what AdamW does in one process."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_reg import RegularizationMonitor, WeightDecay
from lightning_reg.metrics import WeightNorm
from tests.callbacks.decay.test_weight_decay import DECAY, KINDS, split
from tests.distributed.test_proximal import OPTIMIZERS
from tests.distributed.training import Module, half, trainer_on
from tests.models import KeepWeights, loader, weights_of
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed

PATTERN = "*weight"


def train(kind, strategy):
    """Run on each rank: train on its half of every global batch of four; return the whole weights."""
    keep = KeepWeights()
    trainer = trainer_on(strategy, WeightDecay(DECAY, kind=kind, select=PATTERN), keep, max_epochs=3)
    trainer.fit(Module(OPTIMIZERS["adam"]), half())
    return keep.weights


@pytest.mark.parametrize("strategy", ["ddp", "fsdp1", "fsdp2"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_end_with_the_weights_of_one_process(pool, kind, strategy):
    module = Module(OPTIMIZERS["adam"])
    trainer_on(None, WeightDecay(DECAY, kind=kind, select=PATTERN), max_epochs=3).fit(module, loader())

    first, second = pool.run(train, kind, strategy)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, weights_of(module), rtol=1e-4)
    if kind == "decoupled":
        by_adamw = Module(lambda parameters: torch.optim.AdamW(split(parameters, DECAY), lr=0.02))
        trainer_on(None, max_epochs=3).fit(by_adamw, loader())
        assert_same_weights(first, weights_of(by_adamw), rtol=1e-4)


def ratios(folder, strategy):
    """Run on each rank, or in one process: return how far the last step has moved the layers."""
    monitor = RegularizationMonitor(updates=True, metrics={"norm": WeightNorm()})
    decay = WeightDecay(DECAY, select=PATTERN)
    trainer = trainer_on(strategy, decay, monitor, logger=CSVLogger(folder), max_epochs=3)
    trainer.fit(Module(OPTIMIZERS["adam"]), loader() if strategy is None else half())
    return {key: float(value) for key, value in trainer.callback_metrics.items() if "_ratio_" in key}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_steps_move_layers_as_far_as_in_one_process(pool, tmp_path, strategy):
    expected = ratios(tmp_path, None)

    first, second = pool.run(ratios, tmp_path, strategy)

    assert len(expected) == 6
    assert first == second == pytest.approx(expected, rel=1e-3)
