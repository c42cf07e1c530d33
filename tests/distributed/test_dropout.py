"""Dropout on two ranks: both have the rates of one process, and masks of their own."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import DropoutScheduler, Linear, MonteCarloDropout
from lightning_reg.ensemble import BootstrapSampler
from tests.distributed.training import trainer_on
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
    module = Module()
    torch.manual_seed(1 + torch.distributed.get_rank())
    if compiled:
        module.network = torch.compile(module.network, backend="aot_eager")
    trainer = trainer_on(strategy, DropoutScheduler(Linear(0.0, 0.8, 1.0)), max_epochs=1, use_distributed_sampler=True)
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


class Numbered(LightningModule):
    """Returns for each row its number, under dropout and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, rows):
        return self.dropout(rows)

    def predict_step(self, batch, batch_idx):
        return {"row": batch[0].long(), "mean": self(batch[0])}

    def test_step(self, batch, batch_idx):
        self.log("mean", self(batch[0]).mean(), batch_size=len(batch[0]), sync_dist=True)


def predict(function):
    """Run on each rank: return what `predict` or `test` gives, and where the random state is afterwards."""
    data = DataLoader(TensorDataset(torch.arange(1.0, 12.0)), batch_size=2)
    trainer = trainer_on("ddp", MonteCarloDropout(400, seed=0), use_distributed_sampler=True)
    return getattr(trainer, function)(Numbered(), data)


def test_predictions_keep_the_order_that_lightning_gives(pool):
    ranks = pool.run(predict, "predict")

    for rank, batches in enumerate(ranks):
        rows = torch.cat([batch["row"] for batch in batches])
        mean = torch.cat([batch["mean"].mean for batch in batches])
        # Rank r takes rows r, r + 2, ...
        torch.testing.assert_close(rows, torch.arange(1, 12)[rank::2])
        torch.testing.assert_close(mean, rows.float(), rtol=0.25, atol=0)
    first, second = (torch.cat([batch["mean"].mean / batch["row"] for batch in batches])[:5] for batches in ranks)
    assert not torch.allclose(first, second)  # masks of their own


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_both_ranks_log_one_mean_and_one_spread(pool):
    (first,), (second,) = pool.run(predict, "test")

    assert first == second
    # Twelve rows on two ranks, the first one twice; a row x is 0 or 2 x.
    assert first["mean"] == pytest.approx((66 + 1) / 12, rel=0.1)
    assert first["reg/mc_dropout_std"] == pytest.approx((66 + 1) / 12, rel=0.1)


class Sharded(Numbered):
    """Numbers its rows by a layer that FSDP2 shards."""

    def configure_model(self):
        self.linear = nn.Linear(1, 1)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        fully_shard(self.linear, mesh=self.device_mesh["data_parallel"])

    def forward(self, rows):
        return self.dropout(self.linear(rows[:, None]))[:, 0]


def predict_sharded(strategy):
    """Run on each rank: return predictions of FSDP2, or the error of tensor parallelism."""
    trainer = trainer_on(strategy, MonteCarloDropout(400, seed=0), use_distributed_sampler=True)
    data = DataLoader(TensorDataset(torch.arange(1.0, 13.0)), batch_size=2)
    if strategy == "fsdp2":
        return trainer.predict(Sharded(), data)
    with pytest.raises(MisconfigurationException) as error:
        trainer.predict(Sharded(), data)
    return str(error.value)


@pytest.mark.twin
def test_sharded_models_predict_and_tensor_parallelism_is_refused(pool):
    for batches in pool.run(predict_sharded, "fsdp2"):
        for batch in batches:
            torch.testing.assert_close(batch["mean"].mean, batch["row"].float(), rtol=0.25, atol=0)
    for message in pool.run(predict_sharded, "tensor parallel"):
        assert "does not work with tensor parallelism" in message


def bootstrap():
    """Run on each rank: return the rows that it sees in each of two epochs."""

    class Rows(Regressor):
        def __init__(self):
            super().__init__()
            self.rows = []

        def training_step(self, batch, batch_idx):
            self.rows.append((self.current_epoch, batch[0].tolist()))
            return super().loss((torch.ones(1, 5), torch.ones(1, 2)))

    data = TensorDataset(torch.arange(10))
    module = Rows()
    trainer = trainer_on("ddp", use_distributed_sampler=True)
    trainer.fit(module, DataLoader(data, batch_size=1, sampler=BootstrapSampler(data, seed=4)))
    return [[row for epoch, (row,) in module.rows if epoch == number] for number in range(2)]


def test_ranks_share_one_bootstrap_sample(pool):
    first, second = pool.run(bootstrap)

    rows = BootstrapSampler(range(10), seed=4).rows
    for one, other in zip(first, second, strict=True):
        assert sorted(one + other) == rows
    assert first[0] != first[1]
