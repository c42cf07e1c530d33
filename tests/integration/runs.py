"""One run of several callbacks, drawn at random or set by hand: trained by Lightning, and by a loop without it."""

import os
import random
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.local import LocalFileOpener
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_reg import LipschitzMonitor, RegularizationMonitor
from tests.callbacks.penalties.test_resume import PowerCutError, ResumableLoader, StopBefore
from tests.integration.effects import KINDS, dropout, rate_of_dropout, train_with_effects
from tests.models import KeepWeights, Regressor, samples, weights_of

PARTS = ("encoder", "hidden", "head")
ROWS = 26  # the last of seven batches is short: two rows, one for each of two ranks
BATCHES = 7
SEEDS = range(100)

# The callbacks from which cases are drawn. Add a line for another callback.
WATCHERS: dict[str, Callable[[], Callback]] = {
    "monitor": lambda: RegularizationMonitor(),
    "lipschitz": lambda: LipschitzMonitor(target="network.encoder", every_n_steps=1, samples=2),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}
# These need a loop of their own where the scaler of fp16 is at work: expected is what the others of that name do.
FUSED = {f"fused {name}": partial(OPTIMIZERS[name], fused=True) for name in OPTIMIZERS}
PRECISIONS = {"32-true": None, "64-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
CLIPPING: dict[str, Callable[..., object]] = {
    "none": lambda parameters: None,
    "norm": partial(nn.utils.clip_grad_norm_, max_norm=0.5),
    "value": partial(nn.utils.clip_grad_value_, clip_value=0.1),
}
ALONE = ("single",)
TOGETHER = ("ddp", "ddp_find_unused_parameters_true", "fsdp2")
# How a run stops before its end, to be resumed from its last checkpoint; the last two need a process of their own.
INTERRUPTIONS = ("none", "exception", "SIGTERM", "SIGKILL", "SIGKILL while a checkpoint is written")

# Kinds that can be together: a penalty in each mode, and what changes weights by itself.
TOGETHER_IN_ONE_RUN = (
    ("elastic_net loss", "encoder"),
    ("target sparsity", "encoder"),
    ("own grad", "hidden"),
    ("constraint", "hidden"),
    ("spectral norm loss", "head"),
    ("normalization", "head"),
)


@dataclass(frozen=True)
class Case:
    """The settings of one run."""

    regularized: tuple[tuple[str, str], ...]
    """Names of `KINDS`, each with the part of the network that it acts on."""
    drops: bool = False
    watchers: tuple[str, ...] = ()
    optimizer: str = "sgd"
    precision: str = "32-true"
    accumulate: int = 1
    clipping: str = "none"
    validates: bool = False
    strategy: str = "single"
    epochs: int = 2
    interruption: str = "none"
    at_batch: int = 0
    """The batch, counted over epochs, before which the run stops; of a checkpoint, the first one from there on."""
    save_every: int = 1
    """Optimizer steps between two checkpoints."""
    compile_mode: str = ""
    """That of `torch.compile`; empty for none."""

    def tolerance(self) -> float:
        """Return by how much the norm of the difference of a weight may exceed its norm."""
        # In half precision what rounds the other way is seen. Without the scale of fp16, penalties are 1000 times off.
        error = {"32-true": 1e-5, "64-true": 1e-12}.get(self.precision, 1e-2)
        return max([error, *(KINDS[name].error for name, _ in self.regularized)])


def draw(seed: int) -> Case:
    """Return the case of a seed; every fifth is one for two ranks."""
    rng = random.Random(seed)
    together = seed % 5 == 0
    strategy = rng.choice(TOGETHER if together else ALONE)
    interruption = rng.choice(INTERRUPTIONS[:3] if together else INTERRUPTIONS)
    regularized: list[tuple[str, str]] = []
    for part in PARTS:
        names = rng.sample(sorted(KINDS), rng.choice((0, 1, 2, 3)))
        # Of those that change weights by themselves, one for each part.
        by_itself = [name for name in names if KINDS[name].alone]
        # And one spectral norm penalty: Lightning keeps the states of callbacks apart by their selections.
        spectral = [name for name in names if name.startswith("spectral norm")]
        once = [name for name in names if KINDS[name].once and any(KINDS[other].once for other, _ in regularized)]
        regularized += [(name, part) for name in names if name not in (*by_itself[1:], *spectral[1:], *once)]
    rng.shuffle(regularized)  # the order of callbacks
    optimizers = ["sgd"] if any(KINDS[name].needs_sgd for name, _ in regularized) else sorted(OPTIMIZERS)
    return Case(
        tuple(regularized),
        drops=rng.random() < 0.5,
        watchers=tuple(name for name in WATCHERS if rng.random() < 0.5),
        optimizer=rng.choice(optimizers),
        precision=rng.choice(sorted(PRECISIONS if strategy != "fsdp2" else PRECISIONS.keys() - {"64-true"})),
        accumulate=rng.choice((1, 1, 2, 3)),
        clipping=rng.choice(sorted(CLIPPING)),
        validates=rng.random() < 0.5,
        strategy=strategy,
        interruption=interruption,
        at_batch=rng.randrange(1, 2 * BATCHES),
        # One must come after any batch, to be cut off: the last step has one then.
        save_every=1 if interruption == INTERRUPTIONS[-1] else rng.choice((1, 2, 3)),
    )


class Dropping(nn.Dropout):
    """Dropout with the same random numbers for a row of the data in every process, precision and run."""

    def forward(self, inputs: Tensor, rows: Tensor) -> Tensor:
        # Not of the default dtype: that is float64 in a run with `precision="64-true"`.
        if not (self.training and self.p):
            return inputs
        numbers = torch.rand(ROWS, 7, dtype=torch.float32, generator=torch.Generator().manual_seed(2))
        return inputs * (numbers.to(inputs.device)[rows] >= self.p) / (1 - self.p)


class Body(nn.Module):
    """Shards over two ranks are uneven (7 and 3 rows)."""

    def __init__(self, *, has_unused: bool) -> None:
        super().__init__()
        self.encoder, self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 2)
        self.dropout = Dropping(0.1)
        self.unused = nn.Linear(2, 2) if has_unused else nn.Identity()

    def forward(self, inputs: Tensor, rows: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.dropout(torch.tanh(self.encoder(inputs)), rows))))


class Module(Regressor):
    def __init__(self, case: Case) -> None:
        super().__init__((OPTIMIZERS | FUSED)[case.optimizer])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = Body(has_unused="unused" in case.strategy)
        if not case.drops:
            self.network.dropout.p = 0.0
        if case.precision == "64-true":
            self.double()  # at once: Lightning loads a checkpoint before it does so, and rounds it to float32
        if case.compile_mode:
            self.network.compile(mode=case.compile_mode)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.network.hidden, mesh=mesh)
            fully_shard(self.network, mesh=mesh)

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        inputs, targets, rows = batch
        return nn.functional.mse_loss(self.network(inputs, rows), targets)


class Batches(ResumableLoader):
    """The batches of one rank; Lightning goes on with them in the middle of an epoch."""

    def __init__(self, case: Case, rank: int = 0, ranks: int = 1) -> None:
        self.done = 0
        dtype = torch.float64 if case.precision == "64-true" else torch.float32
        inputs, targets = samples(ROWS, dtype).tensors
        data = TensorDataset(inputs, targets, torch.arange(ROWS))
        # Rank r takes rows r, r + 2, ...: together the ranks have the global batches of four.
        sampler = DistributedSampler(data, num_replicas=ranks, rank=rank, shuffle=False)
        self.batches = list(DataLoader(data, batch_size=4 // ranks, sampler=sampler))


class Data(LightningDataModule):
    """The batches of each rank, made where the rank is known: in its process."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def train_dataloader(self) -> Batches:
        return Batches(self.case, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Batches:
        return self.train_dataloader()


class Terminate(StopBefore):
    """Has the system end the training as a scheduler of jobs does: SIGTERM, which Lightning handles."""

    def on_train_batch_start(self, *args):
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
        self.left -= 1


class Kill(StopBefore):
    """Ends the process at once."""

    def on_train_batch_start(self, *args):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


class KillWhileSaving(StopBefore):
    """Ends the process when half of the next checkpoint is in its file."""

    def on_train_batch_start(self, trainer, *args):
        if not self.left:

            def write(file, data):
                os.write(file.fileno(), data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

            LocalFileOpener.write = write  # this process has not long to live
            tempfile.tempdir = trainer.default_root_dir  # where the half file stays
        self.left -= 1


STOPS = dict(zip(INTERRUPTIONS[1:], (StopBefore, Terminate, Kill, KillWhileSaving), strict=True))


def callbacks_of(case: Case) -> list[Callback]:
    """Return the callbacks that regularize, and those that watch."""
    made: list[Callback] = []
    for name, part in case.regularized:
        some = KINDS[name].make(f"network.{part}.weight")
        made += some if isinstance(some, list) else [some]
    return [*made, *([dropout()] if case.drops else []), *(WATCHERS[name]() for name in case.watchers)]


def trainer_of(case: Case, folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    saves = case.interruption != "none"
    keeper = ModelCheckpoint(folder / "checkpoints", save_top_k=-1, every_n_train_steps=case.save_every)
    precision: dict[str, Any] = {"precision": case.precision}
    if case.precision == "16-mixed" and settings.get("accelerator", "cpu") == "cpu":
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        precision = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
    clip = {"norm": 0.5, "value": 0.1}.get(case.clipping)
    strategies = {
        "single": "auto",
        "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    }
    strategy = settings.pop("strategy", strategies.get(case.strategy, case.strategy))
    defaults = {
        "accelerator": "cpu",
        "devices": 1 if case.strategy in ALONE else 2,
        "strategy": strategy() if callable(strategy) else strategy,  # one of its own for each trainer
        "max_epochs": case.epochs,
        "accumulate_grad_batches": case.accumulate,
        "gradient_clip_val": clip,
        "gradient_clip_algorithm": case.clipping if clip else None,
        "logger": TensorBoardLogger(folder, name="", version="log") if case.watchers else False,
        "log_every_n_steps": 4,
        "limit_val_batches": None if case.validates else 0,
        "enable_checkpointing": saves,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return Trainer(
        callbacks=[*callbacks_of(case), *([keeper] if saves else []), *callbacks], **(precision | defaults | settings)
    )


def fit(case: Case, folder: Path, *callbacks: Callback, resume: bool = False, **settings: Any) -> Module:
    """Train as Lightning does, with further callbacks; return the module."""
    module, trainer = Module(case), trainer_of(case, folder, *callbacks, **settings)
    trainer.fit(module, datamodule=Data(case), ckpt_path=newest_checkpoint(folder) if resume else None)
    return module


def train(case: Case, folder: Path, *, interrupt: bool = False, resume: bool = False, **settings: Any) -> Any:
    """Train as Lightning does; return the weights at the end."""
    keep = KeepWeights()
    stop = [STOPS[case.interruption](case.at_batch)] if interrupt else []
    fit(case, folder, *stop, keep, resume=resume, **settings)
    return keep.weights


def interrupt(case: Case, folder: Path) -> None:
    """Train in a process that does not survive."""
    train(case, folder, interrupt=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint; None if there is none yet."""
    paths = (folder / "checkpoints").glob("*.ckpt")
    return max(paths, key=lambda path: int(path.stem.partition("step=")[2]), default=None)


def expected(case: Case, device: str = "cpu") -> dict[str, Tensor]:
    """Return the weights of the loop that is written by hand, on global batches, without an interruption."""
    module = Module(replace(case, optimizer=case.optimizer.removeprefix("fused "), compile_mode="")).to(device)
    weight_of = {part: getattr(module.network, part).weight for part in PARTS}
    scaler = torch.amp.GradScaler(device, init_scale=1024.0 if device == "cpu" else 65536.0)
    train_with_effects(
        module,
        [tuple(tensor.to(device) for tensor in batch) for batch in Batches(case).batches],
        [([weight_of[part]], KINDS[name].effect()) for name, part in case.regularized],
        epochs=case.epochs,
        accumulate=case.accumulate,
        clip=CLIPPING[case.clipping],
        rate=rate_of_dropout if case.drops else None,
        autocast=PRECISIONS[case.precision],
        scaler=scaler if case.precision == "16-mixed" else None,
    )
    return weights_of(module)


def stopped_and_resumed(case: Case, folder: Path, **settings: Any) -> Any:
    """Train until the interruption and then, with a new model and new callbacks, to the end; return the weights."""
    if case.interruption == "none":
        return train(case, folder, **settings)
    try:
        train(case, folder, interrupt=True, **settings)
    except (PowerCutError, SystemExit):
        pass
    else:
        raise AssertionError("the run was not interrupted")
    return train(case, folder, resume=True, **settings)
