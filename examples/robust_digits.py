"""Train on digits with and without control of the layers' norms, and compare the networks under noise and attacks.

    python examples/robust_digits.py

Prints two tables. The first table has test accuracy on clean images, under Gaussian noise and under a small attack by
the sign of the gradient (FGSM). It also has the largest spectral norm of a layer, and the product of all norms. This
product bounds how much the network can amplify a change of its input.

The second table has a lower and an upper bound of the accuracy under the worst change of each image within a radius.
The lower bound is the share of certified images: no change within the radius alters a correct prediction. The upper
bound is the share of images for which an attack by projected gradient finds no such change.
"""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import (
    L2Penalty,
    LipschitzMonitor,
    MarginPenalty,
    RegularizationMonitor,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
)
from lightning_reg.functional import certified_radius, margin_bounds, matrix_norm
from lightning_reg.metrics import CertifiedAccuracy

NOISE = 0.4
ATTACK = 0.1
RADII = (0.1, 0.25, 0.5)
"""The radii of the second table: Euclidean distances between images with pixels in [0, 1]."""
ATTACKED = tuple(step / 20 for step in range(15))
"""The radii of attacks."""

CONTROLS: Mapping[str, Callback | None] = {
    "none": None,
    "l2": L2Penalty(1e-3),
    "spectral_penalty": SpectralNormPenalty(0.01),
    "normalization": SpectralNormalization(2.0),
    "constraint": SpectralConstraint(2.0),
    "margin": MarginPenalty(4.0, radius=0.5),
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
    """Return the share of correctly classified images."""
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


def into_ball(change: Tensor, radius: float) -> Tensor:
    """Return the nearest changes with a norm of at most `radius`."""
    factor: Tensor = (radius / change.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return change * factor


def withstand(module: Classifier, images: Tensor, digits: Tensor, starts: int) -> Mapping[float, Tensor]:
    """Attack the network within each radius, and return which images it still classifies correctly.

    The attack is projected gradient. From a random start, it takes ten steps along the gradient of the largest wrong
    logit minus the correct one. Each step ends with a projection into the ball. A change found within a smaller radius
    also counts for larger radii.
    """
    generator = torch.Generator().manual_seed(0)
    right: Tensor = module(images).argmax(1) == digits
    found = {0.0: right.clone()}
    for radius in ATTACKED[1:]:
        for _ in range(starts):
            left = right.nonzero()[:, 0]
            change = into_ball(torch.randn(len(left), images.shape[1], generator=generator), radius)
            for _ in range(10):
                change.requires_grad_()
                logits = module(images[left] + change)
                own = logits.gather(1, digits[left, None])[:, 0]
                other = logits.scatter(1, digits[left, None], -math.inf).amax(1)
                (gradient,) = torch.autograd.grad((other - own).sum(), change)
                change = into_ball(change.detach() + radius / 4 * nn.functional.normalize(gradient), radius)
                right[left] &= module(images[left] + change).argmax(1) == digits[left]
        found[radius] = right.clone()
    return found


def from_both_sides(
    module: Classifier, images: Tensor, digits: Tensor, starts: int
) -> tuple[CertifiedAccuracy, Mapping[float, float]]:
    """Return the certified accuracy, and the accuracy under attack by radius; the true accuracy lies in between."""
    with torch.no_grad():
        logits, bounds = module(images), margin_bounds(module, images[:1])
    certified = CertifiedAccuracy([step / 100 for step in range(71)])
    certified.update(logits, digits, bounds)
    radii = certified_radius(logits, bounds)
    shares = {}
    for radius, withstood in withstand(module, images, digits, starts).items():
        misled = (radii > radius) & (logits.argmax(1) == digits) & ~withstood
        if misled.any():
            msg = f"An attack within radius {radius:g} changed the prediction of {misled.sum()} certified images."
            raise RuntimeError(msg)
        shares[radius] = withstood.float().mean().item()
    return certified, shares


def train(name: str, max_epochs: int, seed: int, logdir: Path) -> Classifier:
    """Train once and return the module."""
    seed_everything(seed)
    training, testing = digits()
    module, control = Classifier(), CONTROLS[name]
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[RegularizationMonitor(), LipschitzMonitor(certify=RADII), *([control] if control else [])],
        logger=TensorBoardLogger(logdir, name=name),
        accelerator="cpu",
        check_val_every_n_epoch=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True), DataLoader(testing, batch_size=len(testing)))
    return module.eval()


def row(name: str, module: Classifier, images: Tensor, labels: Tensor) -> tuple[str, ...]:
    """Return a row of the first table."""
    noisy = images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    norms = [matrix_norm(layer.weight.detach()).item() for layer in module.network if isinstance(layer, nn.Linear)]
    return (
        name,
        *(f"{accuracy(module, inputs, labels):.1%}" for inputs in (images, noisy, attacked(module, images, labels))),
        f"{max(norms):.2f}",
        f"{math.prod(norms):.1f}",
    )


def worst_case(name: str, certified: CertifiedAccuracy, attacked: Mapping[float, float]) -> tuple[str, ...]:
    """Return a row of the second table."""
    shares = dict(zip(certified.radii, certified.compute().tolist(), strict=True))
    return (name, *(f"{shares[radius]:.1%} to {attacked[radius]:.1%}" for radius in RADII))


def show(*rows: tuple[str, ...]) -> None:
    """Print a table."""
    print()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for each in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(each, widths, strict=True)))


def draw_bars(axes: Axes, rows: Sequence[tuple[str, ...]], columns: Mapping[str, int]) -> None:
    """Draw accuracies of the first table as bars."""
    width = 0.8 / len(columns)
    for number, (label, column) in enumerate(columns.items()):
        places = [place + width * (number - (len(columns) - 1) / 2) for place in range(len(rows))]
        bars = axes.bar(places, [float(row[column].rstrip("%")) for row in rows], width, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize="small")
    axes.set_xticks(range(len(rows)), [row[0].replace("_", "\n") for row in rows])
    axes.set(ylabel="accuracy in %", ylim=(0, 122))
    axes.legend(loc="upper center", ncols=len(columns))


def draw_curves(axes: Axes, sides: Mapping[str, tuple[CertifiedAccuracy, Mapping[float, float]]]) -> None:
    """Draw certified and attacked accuracy against the radius, without control, and with two controls."""
    for name, colour in (("none", "tab:gray"), ("constraint", "tab:blue"), ("margin", "tab:green")):
        certified, under_attack = sides[name]
        certified.plot(ax=axes)
        axes.lines[-1].set(label=f"{name}, certified", color=colour)
        axes.plot(*zip(*under_attack.items(), strict=True), "v--", color=colour, label=f"{name}, attacked")
    axes.set(xlabel="radius of the change", ylabel="accuracy", ylim=(0, 1))
    axes.legend(loc="lower left", fontsize="small")


def main() -> None:
    """Train with each kind of norm control, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=60)
    parser.add_argument("--starts", type=int, default=10, help="random starts of the attack at each radius")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/robust_digits"))
    parser.add_argument("--picture", type=Path, help="where to save the picture, such as robust_digits.png")
    arguments = parser.parse_args()

    images, labels = digits()[1].tensors
    modules = {name: train(name, arguments.max_epochs, arguments.seed, arguments.logdir) for name in CONTROLS}

    rows = [row(name, module, images, labels) for name, module in modules.items()]
    show(("control", "clean", f"noise {NOISE:g}", f"attack {ATTACK:g}", "largest norm", "product of norms"), *rows)

    sides = {name: from_both_sides(module, images, labels, arguments.starts) for name, module in modules.items()}
    print("\nAccuracy under the worst change within a radius: certified to attacked")
    worst = [worst_case(name, certified, attacked) for name, (certified, attacked) in sides.items()]
    show(("control", *(f"radius {radius:g}" for radius in RADII)), *worst)
    if arguments.picture:
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        draw_bars(left, rows, {"clean": 1, f"noise {NOISE:g}": 2, f"attack {ATTACK:g}": 3})
        draw_curves(right, sides)
        figure.savefig(arguments.picture, dpi=100)
    print(f"\ntensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
