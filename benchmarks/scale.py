"""Measure the cost of each callback on a module as large as GPT-2 small (124 million weights), sharded by FSDP2.

    python -m benchmarks.scale
    python -m benchmarks.scale --variants none "L2Penalty, grad"

Trains on all GPUs, or in two processes on a CPU. Each callback gets its own processes. Prints the time of a step that
logs nothing: the mean of two steps, after two untimed ones. Also prints the peak memory of a rank. On a GPU, this is
the memory that torch has allocated; on a CPU, the memory of the whole process. `RegularizationMonitor` only works in
steps that log, so a second line shows it in these.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks._table import print_table
from lightning_reg import (
    AnchorPenalty,
    DropoutScheduler,
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    MaxNorm,
    MCPPenalty,
    NMSparsity,
    OrthogonalPenalty,
    RegularizationMonitor,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
    TargetSparsity,
    WeightDecay,
    late_dropout,
)

STRENGTH = 1e-6
UNTIMED, TIMED = 2, 2
BLOCKS = ["*.linear?.weight", "*.out_proj.weight"]
LOGGING = "RegularizationMonitor, a step that logs"

VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "L2Penalty, loss": lambda: [L2Penalty(STRENGTH)],
    "L2Penalty, grad": lambda: [L2Penalty(STRENGTH, mode="grad")],
    "ElasticNetPenalty, grad": lambda: [ElasticNetPenalty(STRENGTH, mode="grad")],
    "AnchorPenalty, grad": lambda: [AnchorPenalty(STRENGTH, mode="grad")],
    "L1Penalty, proximal": lambda: [L1Penalty(STRENGTH, mode="proximal")],
    "MCPPenalty, proximal": lambda: [MCPPenalty(STRENGTH, mode="proximal")],
    "GroupLassoPenalty, proximal": lambda: [GroupLassoPenalty(STRENGTH, select=BLOCKS, mode="proximal")],
    "TargetSparsity": lambda: [TargetSparsity(L1Penalty(0.0, select=BLOCKS, mode="proximal"), 0.5)],
    "WeightDecay": lambda: [WeightDecay(0.1)],
    "MaxNorm": lambda: [MaxNorm(3.0, select=BLOCKS)],
    "NMSparsity": lambda: [NMSparsity(2, 4, select=BLOCKS)],
    "OrthogonalPenalty, grad": lambda: [OrthogonalPenalty(STRENGTH, select=BLOCKS, mode="grad")],
    "SpectralNormPenalty, grad": lambda: [SpectralNormPenalty(STRENGTH, select=BLOCKS, mode="grad")],
    "SpectralNormalization": lambda: [SpectralNormalization(2.0, select=BLOCKS)],
    "SpectralConstraint": lambda: [SpectralConstraint(2.0, select=BLOCKS)],
    "DropoutScheduler": lambda: [DropoutScheduler(late_dropout(0.1, 1))],
    "RegularizationMonitor": lambda: [RegularizationMonitor()],
    LOGGING: lambda: [RegularizationMonitor()],
}


@dataclass(frozen=True)
class Size:
    """The size of the module, and of the batch on each rank."""

    vocabulary: int
    width: int
    heads: int
    layers: int
    batch: int
    tokens: int


SIZES = {
    "small": Size(50257, 768, 12, 12, batch=8, tokens=1024)
    if torch.cuda.is_available()
    else Size(50257, 768, 12, 12, 1, 64),
    "tiny": Size(96, 16, 2, 2, batch=2, tokens=8),
}


class Network(nn.Module):
    """GPT-2: pre-norm blocks, and an embedding that shares its weight with the head."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.places = nn.Embedding(1024, size.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                size.width, size.heads, 4 * size.width, 0.1, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(size.layers)
        )
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        states = self.tokens(tokens) + self.places(torch.arange(length, device=tokens.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device, dtype=states.dtype)
        for block in self.blocks:
            states = block(states, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(states))
        return logits


class LanguageModel(LightningModule):
    """Predict the next token; each block is sharded separately."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.network = Network(size)

    @override
    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.network.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self.network(batch)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Clock(Callback):
    """Measure the time of each step, and on a GPU the peak memory of the timed steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            if batch_idx + 1 == UNTIMED:
                torch.cuda.reset_peak_memory_stats()
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the mean time of the timed steps."""
        return (self.ends[-1] - self.ends[UNTIMED - 1]) / TIMED


def train(variant: str, size: str) -> tuple[float, float]:
    """Train on every rank; return the seconds per step and the peak memory of this rank in MiB."""
    ranks = torch.cuda.device_count() or 2
    clock, module = Clock(), LanguageModel(SIZES[size])
    given = SIZES[size]
    rows = torch.randint(given.vocabulary, ((UNTIMED + TIMED) * ranks * given.batch, given.tokens))
    data: DataLoader[Tensor] = DataLoader(list(rows), batch_size=given.batch)  # type: ignore[arg-type]  # lists will do
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="auto" if torch.cuda.is_available() else "cpu",
            devices=ranks,
            strategy=ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1),
            callbacks=[*VARIANTS[variant](), clock],
            max_epochs=1,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=1 if variant == LOGGING else 1000,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
    peak = (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return clock.seconds(), peak / 2**20


def in_new_processes(variant: str, size: str) -> tuple[float, float]:
    """Train in new processes, so their peak memory belongs to this variant only."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.scale", "--size", size, "--only", variant, "--answer", str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{variant}:\n{done.stdout}{done.stderr}")
        seconds, memory = json.loads(answer.read_text())
    return seconds, memory


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        warnings.filterwarnings("ignore")
        result = train(arguments.only, arguments.size)
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            arguments.answer.write_text(json.dumps(result))
        return

    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    print(f"{torch.cuda.device_count() or 2} ranks, {where}, torch {torch.__version__}\n")
    rows: list[tuple[str, ...]] = []
    for variant in ["none", *(name for name in arguments.variants if name != "none")]:
        seconds, memory = in_new_processes(variant, arguments.size)
        if not rows:
            base = seconds, memory
        rows.append(
            (
                variant,
                f"{1000 * seconds:.0f}",
                f"{100 * (seconds / base[0] - 1):+.0f} %",
                f"{memory:.0f}",
                f"{memory - base[1]:+.0f}",
            )
        )
    print_table(("callback", "step [ms]", "versus none", "memory per rank [MiB]", "versus none"), rows)


if __name__ == "__main__":
    main()
