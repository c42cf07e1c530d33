"""On two ranks, certified accuracy is over the whole validation set, with the weights that validation uses."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.loggers import TensorBoardLogger
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_reg import LipschitzMonitor
from lightning_reg.metrics import CertifiedAccuracy
from tests.callbacks.monitors.lipschitz import certified_by_planes
from tests.distributed.training import trainer_on
from tests.event_files import scalars
from tests.models import KeepWeights

pytestmark = pytest.mark.distributed

RADII = (0.0, 0.3, 0.6, 0.9)
HAS_EMA = hasattr(of_lightning, "EMAWeightAveraging")  # since Lightning 2.6


class Linear(LightningModule):
    """A linear classifier, whose certified radii are exact; its three rows are sharded unevenly."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(5, 3))

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.network(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def data(count):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=generator)
    return TensorDataset(inputs, (inputs[:, :3] + torch.randn(count, 3, generator=generator)).argmax(1))


class Streamed(IterableDataset):
    """Samples that come one after the other, perhaps none on one rank."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def part_of(samples, counts):
    """Return this rank's part of the samples: of a split, or of a stream, or all, which Lightning distributes."""
    if counts is None:
        return samples
    part = TensorDataset(*(tensor.split(counts)[distributed.get_rank()] for tensor in samples.tensors))
    return part if all(counts) else Streamed(part)


def train(strategy, folder, total, counts, averaged):
    """Run on each rank: return what callbacks see, and the weights that were validated at the end."""
    keep, rank = KeepWeights(), distributed.get_rank()
    trainer = trainer_on(
        strategy,
        LipschitzMonitor(target="network", certify=RADII),
        # At the end of training, averages replace the weights.
        *([of_lightning.EMAWeightAveraging(decay=0.9)] if averaged else []),
        keep,
        logger=TensorBoardLogger(folder, version=0),
        use_distributed_sampler=counts is None,
        num_sanity_val_steps=0,
    )
    training = data(16) if counts is None else TensorDataset(*(tensor[rank::2] for tensor in data(16).tensors))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*sync_dist")
        trainer.fit(
            Linear(),
            DataLoader(training, batch_size=4),
            DataLoader(part_of(data(total), counts), batch_size=8),
        )
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, keep.weights


@pytest.mark.parametrize(
    ("strategy", "total", "counts", "averaged"),
    [
        ("ddp", 63, None, False),  # Lightning's sampler repeats a sample
        ("ddp", 63, (40, 23), HAS_EMA),
        ("ddp", 40, (40, 0), False),
        ("fsdp2", 73, (40, 33), False),
        ("fsdp2", 73, None, False),
    ],
)
def test_two_ranks_certify_the_whole_validation_set(pool, tmp_path, strategy, total, counts, averaged):
    ranks = pool.run(train, strategy, str(tmp_path), total, counts, averaged)

    logged = scalars(tmp_path)
    for seen, weights in ranks:
        shares = certified_by_planes(weights["network.0.weight"], weights["network.0.bias"], data(total), RADII)
        assert len(set(shares)) == len(RADII)
        for radius, share in zip(RADII, shares, strict=True):
            tag = f"reg/certified_accuracy@{radius:g}"
            assert seen[tag] == pytest.approx(share)
            assert logged[tag][max(logged[tag])] == pytest.approx(share)
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1


def measure(logits, target, start, stop):
    """Run on each rank: update the metric with this rank's part, and return its value."""
    metric, rank = CertifiedAccuracy(RADII), distributed.get_rank()
    for row in range(start[rank], stop[rank]):
        metric.update(torch.tensor(logits[row : row + 1]), torch.tensor(target[row : row + 1]), torch.ones(3, 3))
    return metric.compute().tolist()


def test_the_metric_is_over_the_samples_of_both_ranks(pool):
    logits = [[0.5, 0.0, 0.0], [0.0, 0.7, 0.0], [0.2, 0.0, 1.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]

    # Radii of 0.5, 0.7, 0.8, 0 and 2; the second sample is wrong.
    results = pool.run(measure, logits, [0, 0, 2, 0, 0], (0, 2), (2, 5))

    assert results == [[pytest.approx(share) for share in (0.6, 0.6, 0.4, 0.2)]] * 2
