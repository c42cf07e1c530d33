"""Train a digit classifier with low-rank layers, and turn it into a smaller network with the same outputs.

The nuclear norm is the sum of a layer's singular values. Its penalty makes small singular values exactly zero, so a
larger strength gives a lower rank. `factorize` then splits a layer into two thin ones where that saves parameters.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import NuclearNormPenalty
from lightning_reg.functional import factorize

STRENGTHS = (0.0, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


class Classifier(LightningModule):
    """A multilayer perceptron for 8 x 8 images of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        return nn.functional.cross_entropy(self.network(images), digits)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Adam would not work: its step sizes differ within a matrix.
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Result(NamedTuple):
    """The result of training at one strength."""

    strength: float
    values: list[Tensor]
    """The singular values of each layer."""
    accuracy: float
    parameters: int
    """The number of parameters of the smaller network."""
    error: float
    """The largest difference between the outputs of the two networks."""


def digits() -> tuple[TensorDataset, Tensor, Tensor]:
    """Return scikit-learn's digits: three quarters for training, and images and labels of the rest."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=1344, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    return TensorDataset(train_images.float(), train_labels), test_images.float(), test_labels


def train(strength: float, max_epochs: int, seed: int) -> Result:
    """Train once, and factorize the result into a smaller network."""
    seed_everything(seed, verbose=False)
    training, images, labels = digits()
    module = Classifier()
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[NuclearNormPenalty(strength, mode="proximal")],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=21,
    )
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True))
    smaller = factorize(module.network)
    with torch.no_grad():
        outputs = module.network(images)
        error = (smaller(images) - outputs).abs().max().item()
        values = [torch.linalg.svdvals(layer.weight) for layer in module.network if isinstance(layer, nn.Linear)]
    if error > 1e-5 * max(1.0, outputs.abs().max().item()):
        raise RuntimeError(f"the outputs of the smaller network differ by {error:.1e}")
    return Result(strength, values, (outputs.argmax(1) == labels).float().mean().item(), count(smaller), error)


def count(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def ranks(values: Sequence[Tensor]) -> str:
    """Return the rank of each layer: the number of singular values that are not zero up to rounding."""
    return "-".join(str(int((some > 1e-5 * some[0]).sum())) for some in values)


def draw(results: Sequence[Result], path: Path) -> None:
    """Save a picture: singular values of the first layer, and accuracy against the size of the smaller network."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for result in results:
        left.semilogy(result.values[0].clamp(min=1e-3), label=f"{result.strength:g}")
    left.set(title="singular values of the first layer", xlabel="in order", ylim=(2e-3, None))
    left.legend(title="strength", fontsize="small", loc="upper right", ncols=2)
    right.plot([result.parameters for result in results], [result.accuracy for result in results], "o-")
    for index, result in enumerate(results):
        offset = (3, 6 if index % 2 else -12)
        right.annotate(f"{result.strength:g}", (result.parameters, result.accuracy), offset, textcoords="offset points")
    right.set(title="the smaller network, by strength", xlabel="parameters", ylabel="test accuracy", ylim=(0.9, 1.0))
    right.margins(x=0.15)
    right.locator_params(axis="x", nbins=5)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train at each strength, and print ranks, accuracies and sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="where to save the picture, such as low_rank.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the network is so small that more threads would slow it down
    warnings.filterwarnings("ignore", message=".*does not have many workers")

    results = [train(strength, arguments.max_epochs, arguments.seed) for strength in STRENGTHS]

    dense = count(Classifier().network)
    print("\nstrength     ranks  accuracy  parameters  saved  error of the outputs")
    for result in results:
        print(
            f"{result.strength:8g}  {ranks(result.values):>8}  {result.accuracy:8.1%}  {result.parameters:10}"
            f"  {1 - result.parameters / dense:5.0%}  {result.error:20.0e}"
        )
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
