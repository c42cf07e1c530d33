"""On two ranks the monitor sees what one process sees, rank 0 alone writes, and nothing changes."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import distributed, nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.utils import parametrizations

from lightning_reg import RegularizationMonitor
from lightning_reg.metrics import Sparsity, SpectralNorm, WeightNorm
from tests.distributed.training import Module, half, trainer_on
from tests.event_files import histograms, scalars
from tests.models import Regressor, loader

pytestmark = pytest.mark.distributed

METRICS = {
    "norm": WeightNorm,
    "sparsity": lambda: Sparsity(0.05),
    "rows": lambda: Sparsity(0.6, dim=0),
    "columns": lambda: Sparsity(0.6, dim=1),
    "sigma": lambda: SpectralNorm(iterations=5),
}


def monitor():
    metrics = {name: make() for name, make in METRICS.items()}
    return RegularizationMonitor(metrics=metrics, histograms=True, per_layer=True)


def train(strategy, folder, settings):
    """Run on each rank: train on its half of every global batch of four, with a monitor."""
    loggers = [TensorBoardLogger(folder, version=0), CSVLogger(folder, name="csv", version=0)]
    trainer = trainer_on(strategy, monitor(), logger=loggers, **settings)
    trainer.fit(Module(), half(), loader())
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.twin
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_log_the_numbers_of_one_process(pool, trainer_of, tmp_path, strategy):
    ranks = pool.run(train, strategy, str(tmp_path / "two"), {"accumulate_grad_batches": 3})

    trainer = trainer_of(monitor(), logger=TensorBoardLogger(tmp_path / "one"), accumulate_grad_batches=3)
    trainer.fit(Module(), loader(), loader())
    actual, expected = scalars(tmp_path / "two"), scalars(tmp_path / "one")
    ours = [tag for tag in expected if tag.startswith("reg")]
    assert len(ours) == 5 * (4 + 4)  # for each metric: over the layers, and four layers
    assert 0 < expected["reg/rows"][4] < 1
    assert 0 < expected["reg/columns"][4] < 1
    for tag in ours:
        assert actual[tag] == {step: pytest.approx(value, rel=1e-5) for step, value in expected[tag].items()}, tag
    for logged in ranks:
        for tag in ("reg/norm", "reg/sparsity", "reg/sigma_max"):
            assert logged[tag] == pytest.approx(expected[tag][max(expected[tag])], rel=1e-5)
    bars = histograms(tmp_path / "two")["reg.weights/network.encoder"][5]
    assert bars[:, 2].sum() == pytest.approx(35)
    assert len(list((tmp_path / "two").rglob("events.out.tfevents.*"))) == 1
    assert len(list((tmp_path / "two").rglob("metrics.csv"))) == 1


class Noisy(Regressor):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(5, 16)), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 2)
        )


def train_with_and_without(folder):
    """Run on each rank: return the state after training without and with a monitor."""
    states = []
    for callbacks in ([], [RegularizationMonitor(histograms=True)]):
        module = Noisy()
        torch.manual_seed(distributed.get_rank())
        trainer = trainer_on("ddp", *callbacks, logger=TensorBoardLogger(folder), use_distributed_sampler=True)
        trainer.fit(module, loader(24))
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return states


def test_two_ranks_end_in_the_same_weights_bit_for_bit(pool, tmp_path):
    for without, with_monitor in pool.run(train_with_and_without, str(tmp_path)):
        torch.testing.assert_close(with_monitor, without, rtol=0, atol=0)


def refuse_fsdp1(folder):
    """Run on each rank: return the error."""
    trainer = trainer_on("fsdp1", RegularizationMonitor(), logger=TensorBoardLogger(folder))
    with pytest.raises(MisconfigurationException) as error:
        trainer.fit(Module(), loader())
    return str(error.value)


@pytest.mark.twin
def test_flat_shards_are_refused_with_the_remedy(pool, tmp_path):
    for message in pool.run(refuse_fsdp1, str(tmp_path)):
        assert "stores weights in its own shards. Use a single device, 'ddp' or FSDP2" in message


def measure_shards():
    """Run on each rank: update each metric with sharded, replicated and plain weights; return values and weights."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    plain = [torch.randn(5, 3).relu(), torch.randn(1, 4), torch.randn(2, 2), torch.randn(3, 3)]
    plain[0][:, 1] = 0
    plain[0][4] = 0
    placements = [Shard(0), Shard(1), Replicate(), None]
    weights = [
        tensor if placement is None else distribute_tensor(tensor, mesh, [placement])
        for tensor, placement in zip(plain, placements, strict=True)
    ]
    values = {}
    for name, make in METRICS.items():
        metric = make()
        metric.update(weights[:2])
        metric.update(weights[2:])
        values[name] = metric.compute().item()  # synchronises the ranks
    return plain, values


def test_metrics_count_shards_over_all_ranks_and_replicas_once(pool):
    for plain, values in pool.run(measure_shards):
        entries = torch.cat([tensor.flatten() for tensor in plain])
        assert values["norm"] == pytest.approx(entries.norm().item(), rel=1e-6)
        assert values["sparsity"] == pytest.approx((entries.abs() <= 0.05).float().mean().item())
        rows = torch.cat([(tensor.abs() <= 0.6).all(1) for tensor in plain])
        columns = torch.cat([(tensor.abs() <= 0.6).all(0) for tensor in plain])
        assert values["rows"] == pytest.approx(rows.float().mean().item())
        assert values["columns"] == pytest.approx(columns.float().mean().item())
        largest = max(torch.linalg.matrix_norm(tensor, 2).item() for tensor in plain)
        assert values["sigma"] == pytest.approx(largest, rel=1e-5)


def norms_of_each():
    """Run on each rank: return the norms of weights that are spread in turns, and the weights."""
    from torch.distributed.device_mesh import init_device_mesh

    from lightning_reg.functional.spectral.layers import Layer

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    plain = [torch.randn(size, 3) for size in (5, 1, 4, 2)]
    placements = [Shard(0), None, Shard(0), Replicate()]
    weights = [
        tensor if placement is None else distribute_tensor(tensor, mesh, [placement])
        for tensor, placement in zip(plain, placements, strict=True)
    ]
    metric = WeightNorm()
    return metric.value(metric.statistics([Layer("", weight) for weight in weights])), plain


def test_the_numbers_of_single_weights_keep_their_order(pool):
    for norms, plain in pool.run(norms_of_each):
        assert norms.tolist() == pytest.approx([tensor.norm().item() for tensor in plain], rel=1e-6)


def replicas():
    """Run on each rank: plain tensors are replicas, so an equal one on each rank counts once."""
    metric = WeightNorm()
    metric.update(torch.full((3, 3), 2.0))
    return metric.compute().item()


def test_replicated_weights_are_not_counted_twice(pool):
    assert pool.run(replicas) == [6.0, 6.0]
