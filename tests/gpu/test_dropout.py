"""Dropout on a CUDA device: no step waits for it, compiled rates are right, random states are left alone."""

import pytest
import torch
from lightning.pytorch import Callback
from scipy import stats
from torch import nn

from lightning_reg import DropoutScheduler, Linear, MonteCarloDropout
from tests.callbacks.dropout.modules import Module, ticks
from tests.models import Regressor, loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


class OnDevice(Module):
    def training_step(self, batch, batch_idx):
        outputs = self.body(torch.ones(self.shape, device=self.device))
        self.outputs.append(outputs.detach().clone())
        return 0.0 * outputs.sum()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_rates_follow_the_schedule(trainer_of, mode):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = OnDevice(nn.Dropout(0.1), (100_000,))
    module.body = torch.compile(module.body, mode=mode)

    trainer_of(DropoutScheduler(Linear(0.0, 0.6, 6)), accelerator="gpu", devices=1, max_epochs=1).fit(module, ticks())

    for tick, outputs in enumerate(module.outputs):
        assert stats.binomtest((outputs == 0).sum().item(), 100_000, 0.1 * tick).pvalue > 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class NoWaiting(Callback):
    """Between two of them nothing may wait for the device at the start of a batch."""

    def __init__(self, debug_mode):
        self.debug_mode = debug_mode

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode(self.debug_mode)


def test_a_new_rate_does_not_wait_for_the_device(trainer_of):
    scheduler = DropoutScheduler(Linear(0.0, 0.6, 1.0))
    trainer = trainer_of(
        NoWaiting("error"), scheduler, NoWaiting("default"), accelerator="gpu", devices=1, max_epochs=1
    )

    trainer.fit(Regressor(), loader())

    assert trainer.callback_metrics["reg/dropout"].item() == pytest.approx(0.6 * 6 / 7)


def test_random_states_of_the_device_are_left_alone_and_seeds_hold(trainer_of):
    class Dropping(Regressor):
        def predict_step(self, batch, batch_idx):
            return self.network.dropout(self.network(batch[0]))

    torch.cuda.manual_seed(3)
    state = torch.cuda.get_rng_state()
    trainer = trainer_of(MonteCarloDropout(8, seed=0), accelerator="gpu", devices=1)

    first = trainer.predict(Dropping(), loader())
    second = trainer.predict(Dropping(), loader())

    assert torch.equal(torch.cuda.get_rng_state(), state)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.mean, other.mean)
