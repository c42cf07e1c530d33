"""Certified accuracy in training, and bounds of networks that take more than one tensor."""

import math
import sys

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_reg import LipschitzMonitor
from lightning_reg.functional import lipschitz_bound
from tests.callbacks.monitors.lipschitz import certified_by_planes
from tests.event_files import scalars, values_in


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Classifying(Classifier):
    def forward(self, inputs):
        return self.network(inputs)


def data(count=10):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def certified_by_hand(network, samples, radius):
    """The product of the norms is the bound of a network of one hidden layer; margins by loops."""
    first, last = (network[place].weight.detach().double().numpy() for place in (0, 3))
    inputs, labels = (tensor.numpy() for tensor in samples.tensors)
    hidden = np.maximum(inputs @ first.T + network[0].bias.detach().double().numpy(), 0)
    logits = hidden @ last.T + network[3].bias.detach().double().numpy()
    right = 0
    for row, label in zip(logits, labels, strict=True):
        limits = [
            (row[label] - row[other]) / (np.linalg.norm(first, 2) * np.linalg.norm(last[label] - last[other]))
            for other in range(3)
            if other != label
        ]
        right += min(limits) > radius
    return right / len(labels)


@pytest.mark.parametrize("transform", [None, lambda batch: batch[1]])
def test_certified_accuracy_is_over_the_whole_validation_set_at_its_end(trainer_of, tmp_path, transform):
    module, validation = Classifier(), data(11)
    monitor = LipschitzMonitor(target="network", certify=(0.1, 0.25), label_transform=transform)
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    trainer.fit(module, DataLoader(data(8), batch_size=4), DataLoader(validation, batch_size=4))
    logged = scalars(tmp_path / "run")
    for radius in (0.1, 0.25):
        share = certified_by_hand(module.network, validation, radius)
        tag = f"reg/certified_accuracy@{radius}"
        assert sorted(logged[tag]) == [1, 3]
        assert logged[tag][3] == pytest.approx(share)
        assert trainer.callback_metrics[tag].item() == pytest.approx(share)
    assert share > 0


class Pooled(nn.Module):
    """Its pooling uses each number of an even length once, and of an odd length one number twice."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2, 3)

    def forward(self, inputs):
        return self.last(nn.functional.adaptive_max_pool1d(inputs[:, None], 2)[:, 0])


def test_samples_of_another_size_have_bounds_of_their_own(trainer_of, tmp_path):
    module = Classifier()
    module.network = Pooled()
    inputs, labels = data(120).tensors
    even, odd = TensorDataset(inputs[:60, :4], labels[:60]), TensorDataset(inputs[60:], labels[60:])
    radii = (0.0, 0.1, 0.2, 0.4)
    monitor = LipschitzMonitor(target="network", certify=radii)
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    loaders = [DataLoader(part, batch_size=30) for part in (even, odd, even)]
    trainer.fit(module, DataLoader(data(8), batch_size=4), loaders)

    def shares(samples, windows, gain):
        maxima = torch.stack([samples.tensors[0][:, window].amax(1) for window in windows], 1)
        pooled = TensorDataset(maxima, samples.tensors[1])
        last = module.network.last
        return np.array(certified_by_planes(last.weight, last.bias, pooled, [radius * gain for radius in radii]))

    first = shares(even, (slice(2), slice(2, 4)), 1.0)
    second = shares(odd, (slice(3), slice(2, 5)), math.sqrt(2))
    logged = [trainer.callback_metrics[f"reg/certified_accuracy@{radius:g}"].item() for radius in radii]
    np.testing.assert_allclose(logged, (2 * first + second) / 3, rtol=1e-6)


@pytest.fixture
def figures(monkeypatch):
    """What TensorBoard is given: tag, step and figure."""
    given = []
    monkeypatch.setattr(
        SummaryWriter, "add_figure", lambda _, tag, figure, step, **settings: given.append((tag, step, figure))
    )
    return given


def test_tensorboard_has_the_robustness_curve_of_each_validation(trainer_of, tmp_path, figures):
    module, validation = Classifier(), data(30)
    module.network = nn.Linear(5, 3)
    monitor = LipschitzMonitor(target="network", certify=(0.5, 2.0))
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path))
    trainer.fit(module, DataLoader(data(8), batch_size=4), DataLoader(validation, batch_size=30))
    assert [(tag, step) for tag, step, _ in figures] == [("reg/certified_accuracy", 1), ("reg/certified_accuracy", 3)]
    (line,) = figures[-1][2].axes[0].get_lines()
    radii, shares = line.get_data()
    assert (radii[0], radii[-1]) == (0, 2)
    assert len(set(shares)) > 10
    expected = certified_by_planes(module.network.weight, module.network.bias, validation, radii)
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_the_curve_is_an_image_and_monitors_have_one_each(trainer_of, tmp_path):
    monitors = [LipschitzMonitor(target=target, certify=(0.1,)) for target in (None, "network")]
    trainer = trainer_of(*monitors, logger=TensorBoardLogger(tmp_path), max_epochs=1)
    trainer.fit(Classifying(), DataLoader(data(8), batch_size=4), DataLoader(data(8), batch_size=4))
    found = {value.tag: value.metadata.plugin_data.plugin_name for _, value in values_in(tmp_path)}
    for name in ("all", "network"):
        assert found[f"reg/certified_accuracy/{name}"] == "images"
        assert found[f"reg/certified_accuracy@0.1/{name}"] == "scalars"


def test_without_matplotlib_there_is_no_curve(trainer_of, tmp_path, monkeypatch, figures):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monitor = LipschitzMonitor(target="network", certify=(0.1,))
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path), max_epochs=1)
    trainer.fit(Classifier(), DataLoader(data(8), batch_size=4), DataLoader(data(8), batch_size=4))
    assert not figures
    assert "reg/certified_accuracy@0.1" in scalars(tmp_path)


def test_certificates_change_nothing(trainer_of, tmp_path):
    weights = []
    for callbacks in ([], [LipschitzMonitor(target="network", certify=(0.1,))]):
        module = Classifier()
        trainer = trainer_of(*callbacks, logger=TensorBoardLogger(tmp_path))
        trainer.fit(module, DataLoader(data(8), batch_size=4), DataLoader(data(11), batch_size=4))
        weights.append(torch.cat([weight.flatten() for weight in module.parameters()]))
    assert torch.equal(*weights)


def test_a_batch_without_labels_is_refused_with_the_remedy(trainer_of, tmp_path):
    class Unlabelled(Classifier):
        def training_step(self, batch, batch_idx):
            return self.network(batch["x"]).square().mean()

    batches = DataLoader([{"x": torch.randn(5)} for _ in range(4)], batch_size=4)
    trainer = trainer_of(LipschitzMonitor(target="network", certify=(0.1,)), logger=TensorBoardLogger(tmp_path))
    with pytest.raises(Exception, match="Pass `label_transform`"):
        trainer.fit(Unlabelled(), batches, batches)


LABELS = {
    "too many": (lambda batch: batch[1].repeat(2), r"each of 4 samples, whole numbers of shape \(4,\), got .*\(8,\)"),
    "soft": (lambda batch: nn.functional.one_hot(batch[1], 3).float(), r"got torch.float32 of shape \(4, 3\)"),
    "ignored": (lambda batch: batch[1] - 100, "classes from 0 to 2, because `target` returns 3 logits, got -100 to"),
}


@pytest.mark.parametrize(("transform", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_are_not_one_class_for_each_sample_are_refused(trainer_of, tmp_path, transform, message):
    monitor = LipschitzMonitor(target="network", certify=(0.1,), label_transform=transform)
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path), max_epochs=1)
    with pytest.raises(MisconfigurationException, match=rf"LipschitzMonitor\(certify=...\) needs .*{message}"):
        trainer.fit(Classifier(), DataLoader(data(4), batch_size=4), DataLoader(data(4), batch_size=4))


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.embed = nn.Linear(5, 6), nn.Embedding(3, 6)

    def forward(self, x, label):
        return (torch.tanh(self.body(x)) * self.embed(label)).sum(1, keepdim=True)


class Conditional(Classifier):
    def __init__(self):
        super().__init__()
        self.network = Critic()

    def training_step(self, batch, batch_idx):
        return self.network(*batch).mean()


def test_a_conditional_critic_is_bounded_with_its_labels_held_fixed(trainer_of, tmp_path):
    module, batch = Conditional(), data(4)
    monitor = LipschitzMonitor(target="network", input_transform=tuple)
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path), max_epochs=1)
    trainer.fit(module, DataLoader(batch, batch_size=4))
    inputs, labels = batch.tensors
    norms = []
    for row, label in zip(inputs, labels, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x, y=label: module.network(x[None], y[None])[0], row)
        norms.append(jacobian.norm().item())
    lower = trainer.callback_metrics["reg/lipschitz_lower"].item()
    upper = trainer.callback_metrics["reg/lipschitz_upper"].item()
    assert lower == pytest.approx(max(norms), rel=1e-4)
    assert upper == pytest.approx(lipschitz_bound(module.network, (inputs, labels)).value, rel=1e-6)
    assert lower <= upper < math.inf


def test_a_conditional_critic_is_bounded_for_labels_that_no_batch_has(trainer_of, tmp_path):
    module = Conditional()
    module.network.embed = nn.Embedding(7, 6)
    with torch.no_grad():
        module.network.embed.weight[6] = 50
    monitor = LipschitzMonitor(target="network", input_transform=tuple, all_labels=True)
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path), max_epochs=1)
    trainer.fit(module, DataLoader(data(4), batch_size=4))
    norm = np.linalg.norm(module.network.body.weight.detach().numpy(), 2)
    # The sum of six products with a number of 50.
    expected = norm * 50 * math.sqrt(6)
    assert trainer.callback_metrics["reg/lipschitz_upper"].item() == pytest.approx(expected, rel=1e-4)
