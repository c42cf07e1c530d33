"""One small network on few digits: without regularization, with L2, elastic net, L1, exact zeros, and late dropout.

The network has 28 times more weights than there are training images, and a fifth of the training labels is wrong.
Without regularization it memorizes them. The table at the end gives numbers. TensorBoard shows every layer of each run
and compares the runs under Regularization, and has charts under Custom Scalars.
"""

import argparse
import logging
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import (
    DropoutScheduler,
    ElasticNetPenalty,
    L1Penalty,
    L2Penalty,
    RegularizationMonitor,
    late_dropout,
)
from lightning_reg.functional import sparsity, squared_l2_norm

TRAINING_IMAGES = 400
WRONG_LABELS = 0.2
SMALL = 1e-3

REGULARIZERS: Mapping[str, Callback | None] = {
    "none": None,
    "l2": L2Penalty(1e-2),
    "elastic_net": ElasticNetPenalty(3e-3, l1_ratio=0.5),
    "l1": L1Penalty(1e-3),
    "sparse": L1Penalty(1e-3, mode="proximal"),
    "dropout": DropoutScheduler(late_dropout(0.5, 0.1)),
}


class Classifier(LightningModule):
    """A multilayer perceptron for 8 x 8 images of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.0), nn.Linear(96, 48), nn.ReLU(), nn.Dropout(0.0)]
        self.network = nn.Sequential(*hidden, nn.Linear(48, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, digits = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, digits)
        accuracy = (logits.argmax(1) == digits).float().mean()
        self.log_dict({f"{stage}/loss": loss, f"{stage}/accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits: a few with some wrong labels for training, the rest for testing."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=TRAINING_IMAGES, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(TRAINING_IMAGES, generator=generator) < WRONG_LABELS
    train_labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    return TensorDataset(train_images.float(), train_labels), TensorDataset(test_images.float(), test_labels)


class LargestShare(Callback):
    """Records the largest share of the penalties in the objective."""

    value = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ratio = trainer.callback_metrics.get("reg/penalty_ratio", torch.zeros(())).item()
        self.value = max(self.value, ratio / (1 + ratio))


def train(name: str, max_epochs: int, seed: int, logdir: Path) -> tuple[str, ...]:
    """Train once and return a row of the table."""
    seed_everything(seed, verbose=False)
    training, testing = digits()
    module, share = Classifier(), LargestShare()
    regularizer = REGULARIZERS[name]
    print(f"{name}: {regularizer or 'no regularization'}", flush=True)
    callbacks = [share, RegularizationMonitor(histograms=True, every_n_epochs=10)]
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[regularizer, *callbacks] if regularizer else callbacks,
        logger=TensorBoardLogger(logdir, name=name),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=5,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True), DataLoader(testing, batch_size=len(testing)))
    weights = [parameter.detach() for parameter in module.parameters() if parameter.ndim > 1]
    return (
        name,
        f"{trainer.callback_metrics['train/accuracy']:.1%}",
        f"{trainer.callback_metrics['test/accuracy']:.1%}",
        f"{squared_l2_norm(weights).sqrt():.2f}",
        f"{sparsity(weights, threshold=SMALL):.1%}",
        f"{sparsity(weights):.1%}",
        f"{share.value:.1%}",
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
    axes.set(ylabel="accuracy in %", ylim=(50, 100))
    figure.legend(loc="outside upper center", ncols=len(columns))
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train with each callback and print its effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/quickstart"))
    parser.add_argument("--picture", type=Path, help="where to save a picture of it, such as accuracy.png")
    arguments = parser.parse_args()

    # Only what is printed here: no plan for each of six runs, no advice on data loaders for 400 images.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (".*does not have many workers", ".*LeafSpec.* is deprecated"):
        warnings.filterwarnings("ignore", message=message)

    rows = [train(name, arguments.max_epochs, arguments.seed, arguments.logdir) for name in REGULARIZERS]

    head = (
        "regularization",
        "train accuracy",
        "test accuracy",
        "weight norm",
        f"weights < {SMALL:g}",
        "zeros",
        "largest penalty share",
    )
    print()
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if arguments.picture:
        draw(rows, {"training images (some wrong labels)": 1, "test images": 2}, arguments.picture)
    print("\nTo see each layer, and the runs compared, start TensorBoard and open its tab Regularization, where")
    print("python -m webbrowser 'http://localhost:6006/#lightning_reg_page' leads, too:")
    print(f"tensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
