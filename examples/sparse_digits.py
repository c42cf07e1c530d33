"""From a dense network for digits to 90% zeros, and from whole units of zeros to a smaller dense network.

First single weights: an L1 penalty of several strengths, in the loss and as a proximal step, and targets in place of a
strength. Then whole hidden units: a group lasso makes them zero, and they are removed from the network. The smaller
network has the same outputs. TensorBoard shows how sparsity rises.
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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import GroupLassoPenalty, L1Penalty, TargetSparsity
from lightning_reg.functional import sparsity

HIDDEN = ["network.0.weight", "network.2.weight"]

CALLBACKS: Mapping[str, Callback | None] = {
    "dense": None,
    "L1 in the loss": L1Penalty(1e-3),
    "L1 proximal": L1Penalty(1e-4, mode="proximal"),
    "L1 proximal, 10 x": L1Penalty(1e-3, mode="proximal"),
    "target 50% zeros": TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5),
    "target 90% zeros": TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.9),
    "group lasso": GroupLassoPenalty(1e-3, select=HIDDEN, mode="proximal"),
    "target 50% units": TargetSparsity(GroupLassoPenalty(0.0, select=HIDDEN, mode="proximal"), 0.5),
}


class Classifier(LightningModule):
    """A multilayer perceptron for 8 x 8 images of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        loss = nn.functional.cross_entropy(self.network(images), digits)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class LayerSparsity(Callback):
    """Writes the share of zeros of each layer after each epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, weight in pl_module.named_parameters():
            if weight.ndim > 1:
                pl_module.log(f"sparsity/{name}", sparsity([weight]))


def without_zero_units(network: nn.Sequential) -> nn.Sequential:
    """Return a smaller network with the same outputs: without hidden units whose incoming weights are all zero.

    Such a unit outputs relu(bias) for every image. Its contribution to the next layer moves into that layer's bias.
    """
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().clone() for layer in linears]
    biases = [layer.bias.detach().clone() for layer in linears]
    for index in range(len(linears) - 1):
        is_zero = (weights[index] == 0).all(dim=1)
        biases[index + 1] += weights[index + 1][:, is_zero] @ biases[index][is_zero].relu()
        weights[index], biases[index] = weights[index][~is_zero], biases[index][~is_zero]
        weights[index + 1] = weights[index + 1][:, ~is_zero]
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def digits() -> tuple[TensorDataset, Tensor, Tensor]:
    """Return scikit-learn's digits: three quarters for training, and images and labels of the rest."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=1344, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    return TensorDataset(train_images.float(), train_labels), test_images.float(), test_labels


@torch.no_grad()
def train(name: str, max_epochs: int, seed: int, logdir: Path) -> tuple[tuple[str, ...], Tensor]:
    """Train once, remove units of zeros, and return a row of the table and the first layer's weights."""
    seed_everything(seed)
    training, images, labels = digits()
    module, callback = Classifier(), CALLBACKS[name]
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[LayerSparsity(), *([callback] if callback else [])],
        logger=TensorBoardLogger(logdir, name=name.replace(" ", "_").replace("%", "").replace(",", "")),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=21,
    )
    with torch.enable_grad():
        trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True))
    weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    hidden = [module.get_parameter(name) for name in HIDDEN]
    smaller = without_zero_units(module.network)
    outputs = module.network(images)
    error = (smaller(images) - outputs).abs().max().item()
    if error > 1e-5 * max(1.0, outputs.abs().max().item()):
        raise RuntimeError(f"the smaller network has other outputs: {error:.1e}")
    strength = trainer.callback_metrics.get("reg/target_sparsity/strength", getattr(callback, "strength", 0.0))
    row = (
        name,
        f"{float(strength):.1e}",
        f"{sparsity(weights):.1%}",
        f"{sparsity(hidden, dim=0):.1%}",
        f"{(outputs.argmax(1) == labels).float().mean():.1%}",
        "-".join(str(layer.in_features) for layer in smaller if isinstance(layer, nn.Linear)) + "-10",
        f"{sum(parameter.numel() for parameter in smaller.parameters())}",
        f"{error:.0e}",
    )
    return row, hidden[0].detach()


def draw(weights: Mapping[str, Tensor], path: Path) -> None:
    """Save a picture of the first layer of each network: white is zero."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (name, weight) in zip(figure.subplots(2, 4).flat, weights.items(), strict=True):
        largest = weight.abs().max().item()
        axes.imshow(weight.T.numpy(), cmap="RdBu", vmin=-largest, vmax=largest, interpolation="nearest", aspect="auto")
        axes.set_title(name, fontsize="small")
        axes.set(xticks=[], yticks=[])
    figure.supxlabel("128 hidden units", fontsize="small")
    figure.supylabel("64 pixels", fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train with each callback and print its effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", type=Path, default=Path("lightning_logs/sparse_digits"))
    parser.add_argument("--picture", type=Path, help="where to save a picture of it, such as sparse_digits.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the network is small: threads would wait for one another
    warnings.filterwarnings("ignore", message=".*does not have many workers")

    networks = {name: train(name, arguments.max_epochs, arguments.seed, arguments.logdir) for name in CALLBACKS}
    rows = [row for row, _ in networks.values()]

    head = ("training", "strength", "zeros", "zero units", "accuracy", "smaller network", "parameters", "its error")
    print()
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if arguments.picture:
        draw({name: weight for name, (_, weight) in networks.items()}, arguments.picture)
    print(f"\ntensorboard --logdir {shlex.quote(str(arguments.logdir))}")


if __name__ == "__main__":
    main()
