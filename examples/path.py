"""Which inputs matter? In one fit, a network reads fewer and fewer pixels of a digit, from all to none.

    python examples/path.py --picture path.png

A group lasso makes all weights of a pixel zero together. The path starts with the dense network and raises the
strength. A larger strength leaves fewer pixels, and the most useful pixels stay longest. The path chooses the largest
strength with a validation accuracy within one standard error of the best.

A strong penalty also shrinks the weights that stay nonzero. So the example trains new networks without the penalty, on
the pixels that the path selects. `KeepZeros` keeps the weights of the other pixels at zero.

The picture shows accuracy against the number of pixels, and the strength up to which each pixel stays.
"""

import argparse
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from numpy import geomspace
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import GroupLassoPenalty, KeepZeros, RegularizationPath

FIRST = "network.0.weight"


class Classifier(LightningModule):
    """A multilayer perceptron for 8 x 8 images of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        return nn.functional.cross_entropy(self(images), digits)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, digits = batch
        self.log("val/accuracy", accuracy(self, images, digits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@torch.no_grad()
def accuracy(module: Classifier, images: Tensor, digits: Tensor) -> Tensor:
    """Return the share of correctly classified images."""
    is_right: Tensor = module(images).argmax(1) == digits
    return is_right.float().mean()


def digits() -> list[TensorDataset]:
    """Return scikit-learn's digits: 1000 for training, and one half of the rest each for validation and testing."""
    images, labels = load_digits(return_X_y=True)
    train_images, rest, train_labels, rest_labels = train_test_split(
        images / 16, labels, train_size=1000, stratify=labels, random_state=0
    )
    val_images, test_images, val_labels, test_labels = train_test_split(
        rest, rest_labels, test_size=0.5, stratify=rest_labels, random_state=0
    )
    return [
        TensorDataset(torch.as_tensor(images).float(), torch.as_tensor(labels))
        for images, labels in ((train_images, train_labels), (val_images, val_labels), (test_images, test_labels))
    ]


def trainer_of(max_epochs: int, callback: Callback, logger: TensorBoardLogger | None = None) -> Trainer:
    """Return a quiet Trainer."""
    return Trainer(
        max_epochs=max_epochs,
        callbacks=[callback],
        logger=logger or False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=16,
    )


def refit(pixels: Tensor, max_epochs: int, training: TensorDataset, testing: TensorDataset) -> float:
    """Train a new network that reads only `pixels`, and return its accuracy on test images."""
    module = Classifier()
    module.get_parameter(FIRST).data[:, ~pixels] = 0
    loader = DataLoader(training, batch_size=64, shuffle=True)
    trainer_of(max_epochs, KeepZeros(0, select=FIRST)).fit(module, loader)
    return accuracy(module, *testing.tensors).item()


def draw(path: RegularizationPath, reads: Tensor, again: Mapping[int, float]) -> Figure:
    """Draw accuracy against the number of pixels, and the largest strength at which the network reads each pixel."""
    result = path.result
    if result is None:
        raise RuntimeError("the path ended without a strength")
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    counts = reads.sum(1).tolist()
    left.plot(counts, result.scores, "o", markersize=4, label="along the path, validation images")
    left.plot(list(again), list(again.values()), "s-", markersize=4, label="retrained on its pixels, test images")
    chosen = counts[result.best]
    left.axvline(chosen, color="gray", linestyle="--", label=f"chosen strength: {chosen} pixels")
    left.set(xlabel="number of pixels that the network reads (of 64)", ylabel="accuracy", ylim=(0, 1))
    left.legend(loc="lower right")
    stays = torch.where(reads, torch.tensor(result.strengths)[:, None], 0.0).amax(0)
    shown = torch.where(stays > 0, stays.log10(), torch.nan).reshape(8, 8)
    image = right.imshow(shown.numpy(), cmap="viridis")
    figure.colorbar(image, ax=right, label="log10 of the largest strength with the pixel")
    right.set(xticks=[], yticks=[], title="pixels")
    return figure


def main() -> None:
    """Train along the path, and print accuracy against the number of pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=10, help="epochs per strength")
    parser.add_argument("--strengths", type=int, default=40)
    parser.add_argument("--weakest", type=float, default=1e-3)
    parser.add_argument("--strongest", type=float, default=0.5)
    parser.add_argument(
        "--pixels",
        type=int,
        nargs="*",
        default=(64, 40, 30, 20, 15, 10, 5),
        help="numbers of pixels for which to train a new network",
    )
    parser.add_argument("--refit-epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/path"))
    parser.add_argument("--picture", type=Path, help="where to save the picture, such as path.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the network is so small that more threads would slow it down
    warnings.filterwarnings("ignore", message=".*does not have many workers")

    seed_everything(arguments.seed)
    training, validation, testing = digits()
    module = Classifier()
    path = RegularizationPath(
        GroupLassoPenalty(0.0, select=FIRST, dim=1, mode="proximal"),
        strengths=geomspace(arguments.weakest, arguments.strongest, arguments.strengths).tolist(),
        epochs=arguments.max_epochs,
        monitor="val/accuracy",
        monitor_mode="max",
        rule="one_se",
        direction="up",
    )
    logger = TensorBoardLogger(arguments.logdir.parent, name=arguments.logdir.name)
    trainer = trainer_of(-1, path, logger)  # the path ends the fit
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=50))

    result = path.result
    if result is None:
        raise RuntimeError("the path ended without a strength")
    weights = [result.weights(index)[FIRST] for index in range(len(result.strengths))]
    reads = torch.stack([(weight != 0).any(0) for weight in weights])
    counts = reads.sum(1).tolist()
    print("\nstrength  pixels  accuracy")
    for index, (strength, count, score) in enumerate(zip(result.strengths, counts, result.scores, strict=True)):
        print(f"{strength:8.1e}  {count:6}  {score:8.1%}{'  <- chosen' if index == result.best else ''}")
    print(f"chosen network on test images: {accuracy(module, *testing.tensors):.1%}\n\npixels  retrained")
    again: dict[int, float] = {}
    for most in arguments.pixels:
        # Take the smallest strength with at most this number of pixels.
        first = next((position for position, count in enumerate(counts) if 0 < count <= most), None)
        if first is not None and counts[first] not in again:
            again[counts[first]] = refit(reads[first], arguments.refit_epochs, training, testing)
            print(f"{counts[first]:6}  {again[counts[first]]:9.1%}")
    if arguments.picture:
        draw(path, reads, again).savefig(arguments.picture, dpi=100)
    print(f"\ntensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
