"""The cost of the Lipschitz monitor: each bound in training steps, and everything as a share of the training time.

    python -m benchmarks.lipschitz

`--quick` takes fewer rounds. In the first table, steps and bounds take turns, and each figure is a median of the ratios
of the rounds. The last column is the largest share with the default intervals: the upper bound also waits for the end
of an epoch. The second table is a whole run with the default intervals: the time in the monitor's hooks, divided by the
remaining time.
"""

import copy
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks._clocks import milliseconds, timed
from benchmarks._resnets import resnet18
from benchmarks._table import print_table
from lightning_reg import LipschitzMonitor
from lightning_reg.functional import conv_norm_bound, jacobian_norm, lipschitz_bound

SAMPLES = 8
BATCH = 64


def cnn() -> nn.Module:
    """Return a network for digits of 8 x 8 pixels, with batch normalization and pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)),
    )


class Transformer(nn.Module):
    """An encoder of the size of BERT-base without its embedding, with ten classes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.head = nn.Linear(768, 10)

    @override
    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(states).mean(1))
        return logits


class Features(Transformer):
    """The same network without the head: too many outputs for the whole Jacobian."""

    @override
    def forward(self, states: Tensor) -> Tensor:
        features: Tensor = self.encoder(states)
        return features


def digits() -> TensorDataset:
    images, targets = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(targets))


def step_of(network: nn.Module, inputs: Tensor) -> Callable[[], object]:
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        optimizer.step()

    return step


def bounds(name: str, network: nn.Module, inputs: Tensor, rounds: int) -> list[str]:
    """Return a row of the first table."""
    variants = {
        "step": step_of(network, inputs),
        "lower": lambda: jacobian_norm(network, inputs[:SAMPLES]),
        "upper": lambda: lipschitz_bound(network, inputs[:SAMPLES]),
    }
    times = milliseconds(variants, rounds)

    def in_steps(variant: str) -> float:
        return statistics.median(own / step for own, step in zip(times[variant], times["step"], strict=True))

    lower, upper = in_steps("lower"), in_steps("upper")
    share = (lower + upper) / LipschitzMonitor().every_n_steps
    step = statistics.median(times["step"])
    return [name, str(len(inputs)), f"{step:.1f}", f"{lower:.2f}", f"{upper:.2f}", f"{share:.2%}"]


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = cnn()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def run(steps: int) -> list[str]:
    """Return the row of the second table."""
    monitor = LipschitzMonitor()
    seconds = timed(monitor, time.perf_counter)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor],
        )
        start = time.perf_counter()
        trainer.fit(Digits(), DataLoader(digits(), batch_size=BATCH, shuffle=True))
        whole = time.perf_counter() - start
    share = sum(seconds) / (whole - sum(seconds))
    return ["digits CNN", str(BATCH), str(steps), f"{1e3 * sum(seconds):.0f}", f"{share:.2%}", "2 %"]


def large_layer(size: int) -> list[str]:
    """Return the row of the third table, in seconds of the CPU."""
    first = nn.Linear(size, size)
    network, weight = nn.Sequential(first, nn.ReLU(), nn.Linear(size, 10)), first.weight.detach().double()
    variants: dict[str, Callable[[], object]] = {
        "eigenvalues": lambda: torch.linalg.eigvalsh(weight @ weight.mT),
        "bound": lambda: lipschitz_bound(network, torch.zeros(1, size)),
    }
    seconds = []
    for compute in variants.values():
        start = time.process_time()
        compute()
        seconds.append(time.process_time() - start)
    truth = torch.linalg.matrix_norm(weight, 2).item()
    above = lipschitz_bound(network, torch.zeros(1, size)).per_layer["0"] / truth - 1
    return [f"{size} x {size}", f"{seconds[0]:.2f}", f"{seconds[1] / seconds[0]:.2f}", f"{above:.2%}", "2"]


def by_eigenvalues(weight: Tensor, points: int = 16) -> Tensor:
    """Return the bound of 3 x 3 taps for images of any size, by eigenvalues at each frequency."""
    norms = []
    for first in range(points // 2 + 1):
        waves = torch.polar(
            torch.ones(points, 3), 2 * math.pi / points * torch.arange(points)[:, None] * torch.arange(3)
        )
        rows = weight.to(torch.complex64) @ waves.T  # over the last axis: (outputs, inputs, 3, points)
        responses = torch.einsum("oitf,t->foi", rows, waves[first])
        norms.append(torch.linalg.eigvalsh(responses @ responses.mH).amax().sqrt())
    return torch.stack(norms).amax() / math.cos(math.pi / points) ** 2


def large_convolution(channels: int) -> list[str]:
    """Return a row of the fourth table, in seconds of the CPU."""
    weight = nn.Conv2d(channels, channels, 3).weight.detach()
    seconds, found = [], []
    for compute in (by_eigenvalues, conv_norm_bound):
        start = time.process_time()
        found.append(float(compute(weight)))
        seconds.append(time.process_time() - start)
    above = found[1] / found[0] - 1
    return [f"{channels} -> {channels}", f"{seconds[0]:.2f}", f"{seconds[1] / seconds[0]:.2f}", f"{above:.3%}", "0.33"]


def resnet_bound() -> list[str]:
    """Return the row of the fifth table, in seconds of the CPU."""
    network, images = resnet18(), torch.randn(8, 3, 64, 64)
    step = step_of(network, images)
    step()
    seconds = []
    for compute, count in ((step, 5), (lambda: lipschitz_bound(network, images[:SAMPLES]), 1)):
        start = time.process_time()
        for _ in range(count):
            compute()
        seconds.append((time.process_time() - start) / count)
    return ["ResNet-18, 64 x 64", "8", f"{1e3 * seconds[0]:.0f}", f"{seconds[1] / seconds[0]:.0f}", "60"]


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's advice about data loaders
    quick = "--quick" in sys.argv
    (images, _), states = digits()[:BATCH], torch.randn(8, 32, 768)
    print_table(
        ["model", "batch", "step, ms", "lower, steps", "upper, steps", "default intervals"],
        [
            bounds("digits CNN", cnn(), images, 5 if quick else 20),
            bounds("transformer, 10 classes", Transformer(), states, 1 if quick else 3),
            bounds("transformer, features", Features(), states, 1 if quick else 3),
        ],
    )
    print()
    print_table(["model", "batch", "steps", "in hooks, ms", "of training", "target"], [run(500 if quick else 1500)])
    print("\n`lipschitz_bound` of a large layer and a head, beside eigenvalues of its Gram matrix in float64.\n")
    print_table(["layer", "eigenvalues, s", "bound / this", "norm above the truth", "target"], [large_layer(2048)])
    print("\n`conv_norm_bound` of 3 x 3 taps for images of any size, beside eigenvalues at each frequency.\n")
    rows = [large_convolution(channels) for channels in (128, 256, 512)]
    print_table(["channels", "eigenvalues, s", "bound / this", "bound above this one", "target for 512"], rows)
    print("\n`lipschitz_bound` of a ResNet-18.\n")
    print_table(["model", "batch", "step, ms", "bound, steps", "target"], [resnet_bound()])


if __name__ == "__main__":
    main()
