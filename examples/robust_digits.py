"""Train on digits without and with control of the layers' norms, and compare the networks under noise and an attack.

    python examples/robust_digits.py

Prints a table: test accuracy on clean images, under Gaussian noise and under a small attack by the sign of the gradient
(FGSM). It also shows the largest spectral norm of a layer, and the product of all norms, which bounds how much the
network can stretch any change of its input.
"""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import (
    L2Penalty,
    RegularizationMonitor,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
)
from lightning_reg.functional import matrix_norm

NOISE = 0.4
ATTACK = 0.1

CONTROLS: Mapping[str, Callback | None] = {
    "none": None,
    "l2": L2Penalty(1e-3),
    "spectral_penalty": SpectralNormPenalty(0.01),
    "normalization": SpectralNormalization(2.0),
    "constraint": SpectralConstraint(2.0),
}


class Classifier(LightningModule):
    """A multilayer perceptron for 8 x 8 images of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        loss = nn.functional.cross_entropy(self(images), digits)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, digits = batch
        self.log("test/accuracy", accuracy(self, images, digits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def accuracy(module: Classifier, images: Tensor, digits: Tensor) -> Tensor:
    """Return the share of images that are recognized."""
    hits: Tensor = module(images).argmax(1) == digits
    return hits.float().mean()


def attacked(module: Classifier, images: Tensor, digits: Tensor) -> Tensor:
    """Return images with every pixel moved by `ATTACK` in the direction that increases the loss."""
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(module(images), digits), images)
    moved: Tensor = images + ATTACK * gradient.sign()
    return moved.detach()


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits, 600 for training and the rest for testing."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=600, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    return TensorDataset(train_images.float(), train_labels), TensorDataset(test_images.float(), test_labels)


def train(name: str, max_epochs: int, seed: int, logdir: Path) -> tuple[str, ...]:
    """Train once and return a row of the table."""
    seed_everything(seed)
    training, testing = digits()
    module, control = Classifier(), CONTROLS[name]
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[RegularizationMonitor(), *([control] if control else [])],
        logger=TensorBoardLogger(logdir, name=name),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True), DataLoader(testing, batch_size=len(testing)))
    images, labels = testing.tensors
    noisy = images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    norms = [matrix_norm(layer.weight.detach()).item() for layer in module.network if isinstance(layer, nn.Linear)]
    return (
        name,
        *(f"{accuracy(module, inputs, labels):.1%}" for inputs in (images, noisy, attacked(module, images, labels))),
        f"{max(norms):.2f}",
        f"{math.prod(norms):.1f}",
    )


def draw(rows: Sequence[tuple[str, ...]], columns: Mapping[str, int], path: Path) -> None:
    """Save a picture of columns of the table: accuracies as bars."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for number, (label, column) in enumerate(columns.items()):
        places = [place + width * (number - (len(columns) - 1) / 2) for place in range(len(rows))]
        bars = axes.bar(places, [float(row[column].rstrip("%")) for row in rows], width, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize="small")
    axes.set_xticks(range(len(rows)), [row[0] for row in rows])
    axes.set(ylabel="accuracy in %", ylim=(0, 108))
    figure.legend(loc="outside upper center", ncols=len(columns))
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train with each control and print its effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/robust_digits"))
    parser.add_argument("--picture", type=Path, help="where to save a picture of it, such as robust_digits.png")
    arguments = parser.parse_args()

    rows = [train(name, arguments.max_epochs, arguments.seed, arguments.logdir) for name in CONTROLS]

    head = ("control", "clean", f"noise {NOISE:g}", f"attack {ATTACK:g}", "largest norm", "product of norms")
    print()
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if arguments.picture:
        draw(rows, {"clean": 1, f"noise {NOISE:g}": 2, f"attack {ATTACK:g}": 3}, arguments.picture)
    print(f"\ntensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
