"""The cost of the monitor: at a logging step beside hand-written code, and as a share of the training time.

`python -m benchmarks.monitor` prints one table; `--quick` takes fewer rounds. Every step of the runs is a logging step.
With Lightning's default, one step in 50 is, and the last two columns are scaled to that. Each figure is a median over
rounds, with quartiles; the singular values of the transformer are computed only once.
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

# Silence the profiler; torch reads this on import.
os.environ |= {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from typing_extensions import override

from benchmarks._rotation import Spread, measure
from benchmarks._table import print_table
from lightning_reg import RegularizationMonitor

INTERVAL = 50
# Limits on a CPU: a share of the training time, or milliseconds for each step.
TARGETS = {"transformer": "1 %", "1000 layers": "1 ms"}


class Transformer(nn.Module):
    """An encoder of the size of BERT-base, computed on a small batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30522, 768)
        layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 12)
        self.register_buffer("tokens", torch.randint(30522, (8, 32)))

    @override
    def forward(self) -> Tensor:
        states: Tensor = self.encoder(self.embedding(self.get_buffer("tokens")))
        return states.square().mean()


class ManyLayers(nn.Module):
    """A thousand small layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(1000))
        self.register_buffer("inputs", torch.randn(256, 64))

    @override
    def forward(self) -> Tensor:
        state = self.get_buffer("inputs")
        for layer in self.layers:
            state = state + 0.01 * layer(state).relu()
        return state.square().mean()


class Network(LightningModule):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.body()
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-6)


class ByHand(Callback):
    """Logs a statistic of every weight, as hand-written code does."""

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        writer = trainer.logger.experiment  # type: ignore[union-attr]
        for name, weight in pl_module.named_parameters():
            if weight.ndim > 1:
                self.write(writer, name, weight.detach(), batch_idx)

    def write(self, writer: Any, name: str, weight: Tensor, step: int) -> None:
        raise NotImplementedError


class Histograms(ByHand):
    @override
    def write(self, writer: Any, name: str, weight: Tensor, step: int) -> None:
        writer.add_histogram(f"histogram/{name}", weight, step)


class Norms(ByHand):
    @override
    def write(self, writer: Any, name: str, weight: Tensor, step: int) -> None:
        writer.add_scalar(f"norm/{name}", weight.norm().item(), step)


class SingularValues(ByHand):
    @override
    def write(self, writer: Any, name: str, weight: Tensor, step: int) -> None:
        writer.add_scalar(f"sigma/{name}", torch.linalg.svdvals(weight)[0].item(), step)


def seconds_of_singular_values(body: nn.Module) -> float:
    start = time.perf_counter()
    for weight in body.parameters():
        if weight.ndim > 1:
            torch.linalg.svdvals(weight.detach())
    return time.perf_counter() - start


def rows(name: str, body: nn.Module, rounds: int, *, singular_values: bool) -> Iterator[list[str]]:
    variants: dict[str, list[Callback]] = {
        "none": [],
        "monitor": [RegularizationMonitor(per_layer=True)],
        "a norm each": [Norms()],
        "a histogram each": [Histograms()],
    }
    if singular_values:
        variants["singular values of each"] = [SingularValues()]
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Network(body), variants, rounds=rounds, logger=TensorBoardLogger(folder))
    base = measured.pop("none")
    step = Spread.of(base.milliseconds)
    yield [name, "none", f"(step: {step})", "", "", "", ""]
    own = measured["monitor"].extra_milliseconds(base).median
    for variant, cost in measured.items():
        extra = cost.extra_milliseconds(base)
        share, each = extra.median / INTERVAL / step.median, extra.median / INTERVAL
        target = TARGETS[name] if variant == "monitor" else ""
        yield [name, variant, str(extra), f"{own / extra.median:.2f}", f"{share:.2%}", f"{each:.2f}", target]
    if not singular_values:
        once = 1e3 * seconds_of_singular_values(body)
        yield [name, "singular values of each", f"{once:.0f} (once)", f"{own / once:.3f}", "", "", ""]


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's advice about data loaders
    rounds = 2 if "--quick" in sys.argv else 6
    print_table(
        ["model", "logs", "extra ms", "monitor / this", "of training", "ms a step", "CPU target"],
        [
            *rows("1000 layers", ManyLayers(), rounds, singular_values=True),
            *rows("transformer", Transformer(), max(2, rounds // 2), singular_values=False),
        ],
    )


if __name__ == "__main__":
    main()
