"""Why gradients grow near the end of training, and a weight decay that prevents it.

In a layer followed by a norm, decay and gradient balance each other where |g| / |w| is sqrt(2 decay / rate). A cosine
schedule takes the learning rate to zero, so the gradients grow relative to the weights. Decay corrected for the rate
keeps their ratio from growing. The figure shows this for digits; the table also has the accuracy.
"""

import argparse
import math
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import WeightDecay

RATE, DECAY = 0.5, 0.05
HIDDEN = ("network.0.weight", "network.3.weight")
Kind = Literal["decoupled", "corrected"]


class Classifier(LightningModule):
    """Two normalized hidden layers for 8 x 8 images of ten digits."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        hidden = [layer for width in (64, 96) for layer in (nn.Linear(width, 96), nn.BatchNorm1d(96), nn.ReLU())]
        self.network = nn.Sequential(*hidden, nn.Linear(96, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        return nn.functional.cross_entropy(self(images), digits, label_smoothing=0.2)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.SGD(self.parameters(), lr=RATE)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Ratios(Callback):
    """Records |g| / |w| of the hidden layers over the steps."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        weights = [pl_module.get_parameter(name) for name in HIDDEN]
        ratios = [weight.grad.norm() / weight.detach().norm() for weight in weights if weight.grad is not None]
        self.values.append(torch.stack(ratios).mean())

    def around(self, share: float) -> float:
        """Return the mean over a twentieth of the run around this share of it."""
        width = len(self.values) // 20
        start = int(share * (len(self.values) - width))
        return torch.stack(self.values[start : start + width]).mean().item()


def train(kind: Kind, max_epochs: int) -> tuple[Ratios, float]:
    """Train once; return the ratios, and the accuracy on the test images."""
    seed_everything(0)
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images / 16, digits, train_size=1000, stratify=digits, random_state=0)
    training_images, test_images, training_digits, test_digits = map(torch.as_tensor, split)
    data = DataLoader(TensorDataset(training_images.float(), training_digits), batch_size=50, shuffle=True)
    module, ratios = Classifier(max_epochs * len(data)), Ratios()
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[WeightDecay(DECAY, kind=kind), ratios],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    with torch.no_grad():
        return ratios, (module.eval()(test_images.float()).argmax(1) == test_digits).float().mean().item()


def draw(found: dict[Kind, Ratios], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind, ratios in found.items():
        smooth = torch.stack(ratios.values).unfold(0, 25, 1).mean(1)
        axes.plot(range(25, 25 + len(smooth)), smooth, label=f'kind="{kind}"')
    steps = len(next(iter(found.values())).values)
    rates = [RATE * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps - steps // 50)]
    axes.plot([math.sqrt(2 * DECAY / rate) for rate in rates], "k:", label=r"$\sqrt{2 \lambda / \eta}$")
    axes.set(xlabel="step", ylabel="|g| / |w| of hidden layers", ylim=(0, 4 * math.sqrt(2 * DECAY / RATE)))
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Train with both kinds, print the ratios, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=60)
    parser.add_argument("--picture", type=Path, help="where to save the figure, as PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is small: threads would wait for one another
    found: dict[Kind, Ratios] = {}
    rows = []
    kinds: tuple[Kind, ...] = ("decoupled", "corrected")
    for kind in kinds:
        found[kind], accuracy = train(kind, options.max_epochs)
        rows.append((kind, found[kind].around(0.5), found[kind].around(1.0), accuracy))
    print("decay      |g|/|w| in the middle  at the end  test accuracy")
    for kind, middle, end, accuracy in rows:
        print(f"{kind:10} {middle:21.3f} {end:11.3f} {accuracy:13.1%}")
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
