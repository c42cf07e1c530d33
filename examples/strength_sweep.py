"""How strong? The classic curve of strength against the error on training and test images, from over- to underfitting.

    python examples/strength_sweep.py --picture sweep.png

A network learns digits from few images with some wrong labels, without a penalty and with each of a geometric series of
strengths. If the penalty is too weak, it memorizes the wrong labels. If it is too strong, it learns nothing.

TensorBoard's page Regularization compares the runs: strength against the error on test images, the best one marked. The
curve is under Images (of the run "sweep"), and HPARAMS has each run with its strength and both errors.
"""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from numpy import geomspace
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import (
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    Penalty,
    RegularizationMonitor,
    SpectralNormPenalty,
)

TRAINING_IMAGES = 300
WRONG_LABELS = 0.2

PENALTIES: Mapping[str, Callable[[float], Penalty]] = {
    "l1": lambda strength: L1Penalty(strength, mode="grad"),
    "l2": lambda strength: L2Penalty(strength, mode="grad"),
    "elastic_net": lambda strength: ElasticNetPenalty(strength, mode="grad"),
    "group_lasso": lambda strength: GroupLassoPenalty(strength, mode="grad"),
    "spectral_norm": lambda strength: SpectralNormPenalty(strength, mode="grad"),
}


class Errors(NamedTuple):
    """Shares of images that one network classifies wrongly, after training with one strength."""

    strength: float
    train: float
    test: float


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
        loss = nn.functional.cross_entropy(self(images), digits)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits: a few with some wrong labels for training, the rest for testing."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=TRAINING_IMAGES, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(TRAINING_IMAGES, generator=generator) < WRONG_LABELS
    train_labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    return TensorDataset(train_images.float(), train_labels), TensorDataset(test_images.float(), test_labels)


def train(penalty: str, strength: float, max_epochs: int, seed: int, logdir: Path) -> Errors:
    """Train once and log the strength with both errors, as hyperparameter and metrics."""
    seed_everything(seed, verbose=False)
    training, testing = digits()
    module = Classifier()
    # Without Lightning's `hp_metric` beside our metrics.
    logger = TensorBoardLogger(logdir, name=f"{penalty}_{strength:.1e}", version="", default_hp_metric=False)
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[PENALTIES[penalty](strength), RegularizationMonitor(hparams=False)],  # they are logged below
        logger=logger,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=5,
    )
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True))
    errors = Errors(strength, *(error(module, *data.tensors) for data in (training, testing)))
    metrics = {"error/train": errors.train, "error/test": errors.test}
    logger.log_hyperparams({"penalty": penalty, "strength": strength}, metrics)
    return errors


@torch.no_grad()
def error(module: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are not recognized."""
    wrong: Tensor = module(images).argmax(1) != labels
    return wrong.float().mean().item()


def curve(penalty: str, runs: Sequence[Errors], baseline: Errors) -> Figure:
    """Draw strength against both errors."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    best = min(runs, key=lambda run: run.test)
    strengths = [run.strength for run in runs]
    for name, color in (("train", "tab:blue"), ("test", "tab:orange")):
        label = "training images (a fifth of the labels is random)" if name == "train" else "test images"
        axes.semilogx(strengths, [getattr(run, name) for run in runs], "o-", color=color, label=label)
        axes.axhline(getattr(baseline, name), color=color, linestyle=":", label=f"the same, {penalty} = 0")
    axes.axvline(best.strength, color="gray", linestyle="--")
    least = f"least test error: {best.test:.1%} at {best.strength:.1e} "
    axes.text(best.strength, 0.55, least, transform=axes.get_xaxis_transform(), ha="right", color="gray")
    for x, text, side in ((0.02, "overfitting", "left"), (0.98, "underfitting", "right")):
        axes.text(x, 0.1, text, transform=axes.transAxes, ha=side, style="italic")
    # Larger errors do not matter for the choice.
    axes.set(xlabel=f"strength of {penalty}", ylabel="error", ylim=(-0.01, 3 * baseline.test))
    axes.legend(loc="upper left", fontsize="small")
    return figure


def main() -> None:
    """Train with each strength, print both errors, and draw and log the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--penalty", choices=PENALTIES, default="l2")
    parser.add_argument("--weakest", type=float, default=1e-5, help="the least strength above 0")
    parser.add_argument("--strongest", type=float, default=0.1)
    parser.add_argument("--strengths", type=int, default=13, help="how many, in a geometric series")
    parser.add_argument("--max-epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/strength_sweep"))
    parser.add_argument("--picture", type=Path, help="where to save the curve, such as strength_sweep.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the network is small: threads would wait for one another

    series = geomspace(arguments.weakest, arguments.strongest, arguments.strengths).tolist()
    baseline, *runs = [
        train(arguments.penalty, strength, arguments.max_epochs, arguments.seed, arguments.logdir)
        for strength in (0.0, *series)
    ]
    print("\nstrength  training error  test error")
    for run in (baseline, *runs):
        print(f"{run.strength:8.1e}  {run.train:14.1%}  {run.test:10.1%}")
    figure = curve(arguments.penalty, runs, baseline)
    if arguments.picture:
        figure.savefig(arguments.picture, dpi=100)
    sweep = TensorBoardLogger(arguments.logdir, name="sweep", version="", default_hp_metric=False)
    sweep.experiment.add_figure("sweep/error_of_strength", figure)
    sweep.finalize("success")
    print(f"\ntensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
