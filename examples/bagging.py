"""Averaging models: bagging against one model with dropout, on few digits.

Bagging trains k models, each on a bootstrap sample of the training images. If the errors of the models have variance v
and covariance c, their mean has the variance v/k + (k - 1) c/k: it falls with k, but not below c. Dropout trains one
model in which every mask is a member of an ensemble. The first table compares both with a single model. The second
table shows the measured variance of the mean, and the formula with the measured v and c. The errors are errors of
single class probabilities.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import MonteCarloDropout
from lightning_reg.ensemble import BootstrapSampler, average_predictions

TRAINING_IMAGES = 200


class Classifier(LightningModule):
    """A multilayer perceptron for 8 x 8 images of ten digits."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Dropout(rate),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Dropout(rate),
            nn.Linear(64, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        return nn.functional.cross_entropy(self.network(images), digits)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        probabilities: Tensor = self.network(batch[0]).softmax(1)
        return probabilities

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits: a few for training, the rest for testing."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=TRAINING_IMAGES, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    return TensorDataset(train_images.float(), train_labels), TensorDataset(test_images.float(), test_labels)


def trainer(max_epochs: int, *callbacks: MonteCarloDropout) -> Trainer:
    return Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def row(name: str, probabilities: Tensor, labels: Tensor) -> tuple[str, ...]:
    """Return a row of the table."""
    squared = (probabilities - nn.functional.one_hot(labels, 10)).square().mean()
    accuracy = (probabilities.argmax(1) == labels).float().mean()
    loss = nn.functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels)
    return name, f"{accuracy:.1%}", f"{loss:.3f}", f"{squared:.5f}"


def variances(members: Sequence[Tensor], labels: Tensor) -> list[tuple[str, ...]]:
    """Return the rows of the second table."""
    errors = torch.stack([(member - nn.functional.one_hot(labels, 10)).flatten() for member in members]).double()
    moments = errors @ errors.T / errors.size(1)  # about 0, the error of a perfect model
    k = len(members)
    v = moments.diagonal().mean().item()
    c = (moments.sum() - moments.trace()).item() / (k * (k - 1))
    rows = [
        (str(n), f"{errors[:n].mean(0).square().mean():.5f}", f"{v / n + (n - 1) * c / n:.5f}") for n in range(1, k + 1)
    ]
    return [("n", "measured", "v/n + (n - 1) c/n"), *rows, ("v", "", f"{v:.5f}"), ("c", "", f"{c:.5f}")]


def draw(rows: Sequence[tuple[str, ...]], path: Path) -> None:
    """Save a picture of the second table."""
    *points, _, (_, _, covariance) = rows[1:]
    numbers = [int(n) for n, _, _ in points]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(numbers, [float(measured) for _, measured, _ in points], "o", label="measured, of the first n models")
    axes.plot(numbers, [float(formula) for _, _, formula in points], label="v/n + (n - 1) c/n")
    axes.axhline(float(covariance), color="gray", linestyle="--", label="c, which no number of models goes below")
    axes.set(xlabel="n, models that are averaged", ylabel="variance of the mean", ylim=(0, None), xticks=numbers)
    axes.legend()
    figure.savefig(path, dpi=100)


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for cells in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def main() -> None:
    """Train k models on bootstrap samples, one model with dropout and one without, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--models", type=int, default=10, help="k, the number of models that are averaged; at least 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="where to save a picture of it, such as bagging.png")
    arguments = parser.parse_args()
    training, testing = digits()
    labels = testing.tensors[1]
    test_loader = DataLoader(testing, batch_size=len(testing))

    def fit(module: Classifier, sampler: BootstrapSampler | None = None) -> Classifier:
        loader = DataLoader(training, batch_size=32, sampler=sampler, shuffle=sampler is None)
        trainer(arguments.max_epochs).fit(module, loader)
        return module

    def predict(module: Classifier, *callbacks: MonteCarloDropout) -> Tensor:
        predictions = trainer(1, *callbacks).predict(module, test_loader) or []
        return predictions[0].mean if callbacks else predictions[0]  # type: ignore[union-attr, return-value]

    members = []
    for index in range(arguments.models):
        seed_everything(arguments.seed + index, verbose=False)
        members.append(predict(fit(Classifier(), BootstrapSampler(training, seed=arguments.seed + index))))
    seed_everything(arguments.seed, verbose=False)
    single = predict(fit(Classifier()))
    seed_everything(arguments.seed, verbose=False)
    dropout = fit(Classifier(rate=0.5))

    rows = [
        ("", "accuracy", "log loss", "squared error"),
        row("one model", single, labels),
        row("one bootstrap model", members[0], labels),
        row("bagging, arithmetic", average_predictions(members), labels),
        row("bagging, geometric", average_predictions(members, "geometric"), labels),
        row("dropout, weights scaled", predict(dropout), labels),
        row("dropout, 50 masks", predict(dropout, MonteCarloDropout(50, seed=arguments.seed)), labels),
    ]
    print_table(rows)
    spread = variances(members, labels)
    print_table(spread)
    if arguments.picture:
        draw(spread, arguments.picture)


if __name__ == "__main__":
    main()
