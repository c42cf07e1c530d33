"""Dropout on two ranks: both have the rates of one process, and masks of their own."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_reg import DropoutScheduler, Linear
from tests.models import Regressor, loader

pytestmark = pytest.mark.distributed


class Module(Regressor):
    """Keeps the rate, and what dropout leaves of ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dropout = nn.Dropout(0.9)
        self.network = nn.Sequential(nn.Linear(5, 8), self.dropout, nn.Linear(8, 2))
        self.rates: list[float] = []
        self.shares: list[float] = []

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        self.rates.append(self.dropout.p)
        self.shares.append((self.dropout(torch.ones(10_000)) == 0).float().mean().item())
        return super().training_step(batch, batch_idx)


def train(strategy, compiled):
    """Run on each rank: return the rates, the shares of zeros, the logged rate, and the rate afterwards."""
    seed_everything(1 + torch.distributed.get_rank(), verbose=False)
    module = Module()
    if compiled:
        module.network = torch.compile(module.network, backend="aot_eager")
    fsdp2 = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=fsdp2 if strategy == "fsdp2" else strategy,
        callbacks=[DropoutScheduler(Linear(0.0, 0.8, 1.0))],
        max_epochs=1,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader())
    return module.rates, module.shares, trainer.callback_metrics["reg/dropout"].item(), module.dropout.p


@pytest.mark.parametrize(("strategy", "compiled"), [("ddp", False), ("ddp", True), ("fsdp2", False)])
def test_both_ranks_have_the_rates_of_one_process_and_their_own_masks(pool, strategy, compiled):
    ranks = pool.run(train, strategy, compiled)

    expected = [0.8 * step / 4 for step in range(4)]  # 28 rows are seven batches of four: four on each rank
    for rates, shares, logged, afterwards in ranks:
        assert rates == pytest.approx(expected)
        assert shares == pytest.approx(expected, abs=0.02)
        assert logged == pytest.approx(expected[-1])
        assert afterwards == 0.9
    assert ranks[0][1] != ranks[1][1]
