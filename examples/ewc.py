"""Learn one task after the other: elastic weight consolidation against forgetting.

A network learns the digits 0 to 4, then 5 to 9, with the same five outputs. The second task moves weights that the
first task needs, so the network forgets the first task. Elastic weight consolidation keeps each weight near its value
after the first task. The penalty on a weight is larger if the first task's predictions depend more on it (its Fisher
information). `AnchorPenalty` serves as the comparison: it treats all weights alike. Both strengths are close to the
best for the mean accuracy over both tasks.

The penalty is a subclass of `Penalty` with a memory, which `remember` returns. The callback saves the memory in
checkpoints, shards it like the weights, and restores it on resume. It passes the memory to `penalty` in the order of
the weights.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import AnchorPenalty, Penalty, Select

FIRST, SECOND = range(5), range(5, 10)
WEIGHTS = Select(min_ndim=1)  # biases as well


class ElasticWeightConsolidation(Penalty):
    r"""Add :math:`\lambda \sum_i F_i (w_i - w^0_i)^2` to the objective: important weights stay near their start.

    Args:
        strength: :math:`\lambda`, >= 0.
        importance: :math:`F`, one tensor per weight name.

    """

    def __init__(self, strength: float, importance: Mapping[str, Tensor]) -> None:
        super().__init__(strength, select=WEIGHTS)
        self.importance = importance

    def remember(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the initial value of each weight, and its importance."""
        return {name: torch.stack([weight, self.importance[name]]) for name, weight in weights.items()}

    def penalty(self, weights: Sequence[Tensor], memory: Sequence[Tensor]) -> Tensor:
        terms = []
        for weight, (start, importance) in zip(weights, memory, strict=True):
            terms.append((importance * (weight - start).square()).sum())
        return torch.stack(terms).sum()


class Classifier(LightningModule):
    """A multilayer perceptron for 8 x 8 images of the five digits of a task."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        # Label smoothing keeps predictions uncertain. The Fisher information of certain predictions would be zero.
        return nn.functional.cross_entropy(self(images), labels, label_smoothing=0.1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def data(digits: range) -> tuple[TensorDataset, TensorDataset]:
    """Return the images of a task: half for training, half for testing."""
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    chosen = (labels >= digits.start) & (labels < digits.stop)
    images, labels = images[chosen].float() / 16, labels[chosen] - digits.start
    rows = train_test_split(range(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    training, test = (TensorDataset(images[own], labels[own]) for own in rows)
    return training, test


def fisher_information(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the mean squared gradient of log p(label), over images and over labels drawn from the module."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    with torch.no_grad():
        probabilities = module(images).softmax(1)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for label in range(probabilities.shape[1]):

        def log_probability(weights: dict[str, Tensor], image: Tensor, label: int = label) -> Tensor:
            logits: Tensor = functional_call(module, weights, (image.unsqueeze(0),))
            return logits.log_softmax(1)[0, label]

        gradients = vmap(grad(log_probability), (None, 0))(weights, images)
        for name, each in gradients.items():
            found[name] += torch.einsum("n,n...->...", probabilities[:, label], each.square()) / len(images)
    return found


class Accuracies(Callback):
    """Record the test accuracy on both tasks, before training and after each epoch."""

    def __init__(self) -> None:
        self.tests = [data(digits)[1].tensors for digits in (FIRST, SECOND)]
        self.values: list[list[float]] = []

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [(pl_module(images).argmax(1) == labels).float().mean().item() for images, labels in self.tests]
        self.values.append(found)

    on_train_epoch_end = on_train_start


def train(module: Classifier, digits: range, max_epochs: int, *callbacks: Callback) -> list[list[float]]:
    """Train on one task; return the accuracies on both tasks over the epochs."""
    seed_everything(0)
    accuracies = Accuracies()
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[*callbacks, accuracies],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(data(digits)[0], batch_size=32, shuffle=True))
    return accuracies.values


def draw(found: dict[str, list[list[float]]], path: Path) -> None:
    figure = Figure(figsize=(7, 3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for task, (axes, title) in enumerate(zip(panels, ("first task, 0 to 4", "second task, 5 to 9"), strict=True)):
        for name, values in found.items():
            axes.plot([each[task] for each in values], label=name)
        axes.set(title=title, xlabel="epochs on the second task", ylim=(0, 1.02))
    panels[0].set_ylabel("accuracy on test images")
    panels[1].legend()
    figure.savefig(path)


def main() -> None:
    """Learn the first task, then the second in three ways; print and draw the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=10, help="epochs per task")
    parser.add_argument("--picture", type=Path, help="where to save the figure, as PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is so small that more threads would slow it down
    seed_everything(0)
    module = Classifier()
    train(module, FIRST, options.max_epochs)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    importance = fisher_information(module, data(FIRST)[0].tensors[0])
    ways: dict[str, list[Callback]] = {
        "nothing": [],
        "AnchorPenalty": [AnchorPenalty(0.1, select=WEIGHTS)],
        "elastic weight consolidation": [ElasticWeightConsolidation(100.0, importance)],
    }
    found = {}
    for name, callbacks in ways.items():
        module.load_state_dict(start)
        found[name] = train(module, SECOND, options.max_epochs, *callbacks)
    print("kept by                       first task before  after  second task")
    for name, values in found.items():
        print(f"{name:29} {values[0][0]:17.1%} {values[-1][0]:6.1%} {values[-1][1]:12.1%}")
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
