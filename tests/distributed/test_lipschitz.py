"""On two ranks the Lipschitz monitor logs the bounds of one process, rank 0 alone writes, and nothing changes."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations

from lightning_reg import LipschitzMonitor
from lightning_reg.metrics import LipschitzLowerBound
from tests.callbacks.monitors.lipschitz import Passing
from tests.distributed.training import half, trainer_on
from tests.event_files import scalars
from tests.models import KeepWeights, loader

pytestmark = pytest.mark.distributed


def layers():
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 40), nn.SiLU(), nn.Linear(40, 2))


class Sharded(Passing):
    """Sharded by FSDP2 where the strategy asks for that."""

    def __init__(self):
        super().__init__(layers)

    def configure_model(self):
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.network[2], mesh=mesh)
        fully_shard(self.network, mesh=mesh)


def seven(batch):
    return torch.cat([batch[0], batch[1]], 1)


def monitors(target):
    if target == "off":
        return []
    return [LipschitzMonitor(target=target, every_n_steps=1, input_transform=None if target is None else seven)]


def train(strategy, folder, target, settings):
    """Run on each rank: train with a monitor of `target`, "off" for none; return what callbacks see, and weights."""
    keep = KeepWeights()
    logger = TensorBoardLogger(folder, version=0)
    trainer = trainer_on(strategy, *monitors(target), keep, logger=logger, **settings)
    trainer.fit(Sharded(), half(), loader())
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, keep.weights


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("target", [None, "network.2"])
def test_two_ranks_log_the_bounds_of_one_process_and_change_nothing(pool, trainer_of, tmp_path, strategy, target):
    settings = {"accumulate_grad_batches": 3}

    ranks = pool.run(train, strategy, str(tmp_path / "two"), target, settings)

    without = pool.run(train, strategy, str(tmp_path / "off"), "off", settings)
    for (_, weights), (_, expected) in zip(ranks, without, strict=True):
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    trainer = trainer_of(*monitors(target), logger=TensorBoardLogger(tmp_path / "one"), **settings)
    trainer.fit(Sharded(), loader(), loader())
    actual, expected = scalars(tmp_path / "two"), scalars(tmp_path / "one")
    ours = [tag for tag in expected if tag.startswith("reg")]
    assert "reg.lipschitz/network.2" in ours
    for tag in ours:
        assert actual[tag] == {step: pytest.approx(value, rel=1e-5) for step, value in expected[tag].items()}, tag
    for logged, _ in ranks:
        for tag in ("reg/lipschitz_lower", "reg/lipschitz_upper", "reg/lipschitz_gap", "reg/lipschitz_log10"):
            assert logged[tag] == pytest.approx(expected[tag][max(expected[tag])], rel=1e-5)
    assert len(list((tmp_path / "two").rglob("events.out.tfevents.*"))) == 1


class Noisy(Passing):
    def __init__(self):
        super().__init__(
            lambda: nn.Sequential(
                parametrizations.spectral_norm(nn.Linear(5, 16)), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 2)
            )
        )


def train_noisy(folder, monitored):
    """Run on each rank: return the state after training, and of the random generator."""
    module = Noisy()
    torch.manual_seed(distributed.get_rank())
    trainer = trainer_on("ddp", *monitors(None if monitored else "off"), logger=TensorBoardLogger(folder))
    trainer.fit(module, half())
    return {name: tensor.clone() for name, tensor in module.state_dict().items()} | {"random": torch.get_rng_state()}


def test_two_ranks_end_in_the_same_weights_bit_for_bit(pool, tmp_path):
    without, monitored = (pool.run(train_noisy, str(tmp_path), flag) for flag in (False, True))

    torch.testing.assert_close(monitored, without, rtol=0, atol=0)


def spoilt(batch):
    return batch[0] * torch.nan if distributed.get_rank() else batch[0]


def not_finite_on_one_rank(folder):
    """Run on each rank: return what callbacks see if one rank has samples that are not finite."""
    trainer = trainer_on("ddp", LipschitzMonitor(input_transform=spoilt), logger=TensorBoardLogger(folder))
    trainer.fit(Passing(), half())
    return float(trainer.callback_metrics["reg/lipschitz_lower"])


def test_nan_on_one_rank_is_nan_on_all(pool, tmp_path):
    assert all(value != value for value in pool.run(not_finite_on_one_rank, str(tmp_path)))


def measure(samples_of_ranks):
    """Run on each rank: update metrics with this rank's samples; return the values of all."""
    values = {}
    for reduction in ("max", "mean"):
        metric = LipschitzLowerBound(reduction)
        for sample in samples_of_ranks[distributed.get_rank()]:
            metric.update(torch.square, torch.tensor([[sample]]))
        values[reduction] = metric.compute().item()  # synchronises the ranks
    return values


@pytest.mark.parametrize("swapped", [False, True])
def test_the_metric_is_over_the_samples_of_all_ranks(pool, swapped):
    parts = [[1.0, 2.0, 3.0], [6.0]]

    results = pool.run(measure, parts[::-1] if swapped else parts)

    assert results == [{"max": 12.0, "mean": 6.0}] * 2


def test_the_metric_is_nan_if_one_rank_has_a_sample_that_is_not_finite(pool):
    for values in pool.run(measure, [[1.0], [float("nan")]]):
        assert all(value != value for value in values.values())
