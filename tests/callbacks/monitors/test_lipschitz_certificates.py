"""Certified accuracy in training, and bounds of networks that take more than one tensor."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import LipschitzMonitor
from lightning_reg.functional import lipschitz_bound
from tests.event_files import scalars


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


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


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.embed = nn.Linear(5, 6), nn.Embedding(3, 6)

    def forward(self, x, label):
        return (torch.tanh(self.body(x)) * self.embed(label)).sum(1, keepdim=True)


def test_a_conditional_critic_is_bounded_with_its_labels_held_fixed(trainer_of, tmp_path):
    class Conditional(Classifier):
        def __init__(self):
            super().__init__()
            self.network = Critic()

        def training_step(self, batch, batch_idx):
            return self.network(*batch).mean()

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
