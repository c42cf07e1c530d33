"""The cost of a measurement of the monitor on networks of real size: the first, a later and the last; and whole runs.

    python -m benchmarks.looks

Everything is measured inside a Trainer, in CPU seconds, beside plain steps of the same run or of a run right before.
"""

import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from typing_extensions import override

from benchmarks._clocks import timed
from benchmarks._resnets import resnet18, resnet50
from benchmarks._table import print_table
from lightning_reg import RegularizationMonitor


def many_layers() -> nn.Module:
    return nn.Sequential(*(nn.Linear(256, 256) for _ in range(61)))


class Network(LightningModule):
    def __init__(self, body: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.body, self.inputs = body, inputs

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.body(self.inputs).square().mean()
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def train(body: nn.Module, inputs: Tensor, epochs: int, steps: int, interval: int) -> tuple[list[float], float]:
    """Return the seconds of the monitor in each of its hooks, and the seconds of everything else."""
    monitor = RegularizationMonitor()
    seconds = timed(monitor, time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            log_every_n_steps=interval,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor],
        )
        start = time.process_time()
        trainer.fit(Network(body, inputs), range(steps))
        whole = time.process_time() - start
    return seconds, whole - sum(seconds)


def looks(name: str, body: nn.Module, inputs: Tensor) -> list[str]:
    """Return a row of the first table: a run that measures at the first, the 20th and the last step."""
    steps = 25
    seconds, rest = train(body, inputs, 1, steps, 20)
    step = rest / steps
    found = [own / step for own in seconds]
    first, middle, last = sorted(range(len(found)), key=found.__getitem__)[-3:]
    first, middle, last = sorted((first, middle, last))
    return [name, f"{1e3 * step:.0f}", *(f"{found[index]:.2f}" for index in (first, middle, last))]


def run(name: str, epochs: int, steps: int) -> list[str]:
    """Return a row of the second table."""
    shares = []
    for _ in range(3):
        seconds, rest = train(many_layers(), torch.randn(64, 256), epochs, steps, 50)
        shares.append(sum(seconds) / rest)
    return [name, f"{statistics.median(shares):.2%}", "2 %"]


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's advice about data loaders
    print("One measurement, as a multiple of a plain training step. Targets: 15 for the first, 0.5 for 61 layers.\n")
    cases = {
        "ResNet-18, 64 x 64, batch 8": (resnet18(), torch.randn(8, 3, 64, 64)),
        "ResNet-50, 64 x 64, batch 8": (resnet50(), torch.randn(8, 3, 64, 64)),
        "61 x Linear 256, batch 64": (many_layers(), torch.randn(64, 256)),
    }
    rows = [looks(name, *case) for name, case in cases.items()]
    print_table(["model", "step, ms", "first", "20th step", "last"], rows)
    print("\nAll measurements of a run at the default interval, 61 x Linear 256, batch 64, as a share of the rest.\n")
    cases_of_runs = {"50 epochs of 8 steps": (50, 8), "2 epochs of 200 steps": (2, 200)}
    print_table(["run", "of training", "target"], [run(name, *case) for name, case in cases_of_runs.items()])


if __name__ == "__main__":
    main()
