"""Early, late and steady dropout on digits, and the cost of a schedule under `torch.compile`.

`python -m benchmarks.dropout` prints three tables; `--quick` takes fewer seeds and epochs.

Liu et al. 2023 (arXiv:2303.01500): dropout at the start lowers the training loss of a model that underfits, and dropout
after the start keeps a model from overfitting. A narrow and a wide network show both orderings. Cells are the mean over
seeds and its standard error.

The last table counts graphs and times a step relative to no dropout schedule.
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks._table import print_table
from lightning_reg import Constant, DropoutScheduler, Linear, early_dropout, late_dropout
from lightning_reg.schedules import Schedule


class Classifier(LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((64, width), (width, width)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.5)]
        self.network = nn.Sequential(*layers, nn.Linear(width, 10))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def data(train_size: int) -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=train_size, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    return TensorDataset(train_images.float(), train_labels), TensorDataset(test_images.float(), test_labels)


def fit(module: LightningModule, loader: DataLoader[tuple[Tensor, ...]], epochs: int, *callbacks: Callback) -> None:
    Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader)


@torch.no_grad()
def losses(module: Classifier, dataset: TensorDataset) -> tuple[float, float]:
    """Return loss and accuracy without dropout."""
    module.eval()
    images, labels = dataset.tensors
    logits = module.network(images)
    loss = nn.functional.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(1) == labels).float().mean().item()


def orderings(width: int, train_size: int, schedules: dict[str, Schedule], epochs: int, seeds: int) -> None:
    training, testing = data(train_size)
    rows = []
    for name, schedule in schedules.items():
        found = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            module = Classifier(width)
            fit(module, DataLoader(training, batch_size=64, shuffle=True), epochs, DropoutScheduler(schedule))
            found.append((*losses(module, training), *losses(module, testing)))
        cells = torch.tensor(found)
        errors = cells.std(0) / seeds**0.5
        formats = ("{:.4f}", "{:.2%}") * 2
        rows.append(
            [name, *(f"{f.format(m)} +- {f.format(e)}" for f, m, e in zip(formats, cells.mean(0), errors, strict=True))]
        )
    print(f"\nwidth {width}, {train_size} training images, {epochs} epochs, {seeds} seeds\n")
    print_table(["dropout", "training loss", "training accuracy", "test loss", "test accuracy"], rows)


class Naive(Callback):
    """The hand-written version: it sets the number before each batch."""

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5 * trainer.global_step / trainer.estimated_stepping_batches


class Timed(Callback):
    """Keeps the times of steps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @override
    def on_train_batch_end(self, *_: object) -> None:
        self.times.append(time.perf_counter())

    @property
    def median(self) -> float:
        times = torch.tensor(self.times)
        return times.diff()[len(times) // 2 :].median().item()


def costs(steps: int) -> None:
    kinds: dict[str, Callable[[], Sequence[Callback]]] = {
        "no schedule": list,
        "rate set by hand": lambda: [Naive()],
        "DropoutScheduler": lambda: [DropoutScheduler(Linear(0.0, 0.5, 1.0))],
    }
    training, _ = data(64 * 20)
    rows = []
    base: dict[bool, float] = {}
    for compiled in (False, True):
        for name, make in kinds.items():
            torch._dynamo.reset()  # noqa: SLF001  # no public name
            torch._dynamo.utils.counters.clear()  # noqa: SLF001
            torch.manual_seed(0)
            module = Classifier(512)
            if compiled:
                module.network = torch.compile(module.network)  # type: ignore[assignment]
            timed = Timed()
            fit(module, DataLoader(training, batch_size=64), steps // 20, *make(), timed)
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]  # noqa: SLF001
            base.setdefault(compiled, timed.median)
            rows.append(
                ["compiled" if compiled else "eager", name, str(graphs), f"{timed.median / base[compiled]:.2f}"]
            )
    print(f"\nwidth 512, {steps} steps; time of a step in the second half of them, relative to no schedule\n")
    print_table(["", "dropout rate", "graphs", "time of a step"], rows)


def main() -> None:
    quick = "--quick" in sys.argv
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # the second variant hits the limit, as intended
    seeds, epochs = (2, 10) if quick else (5, 40)
    orderings(
        12,
        1257,
        {"none": Constant(0.0), "steady 0.2": Constant(0.2), "early 0.2": early_dropout(0.2, 0.5)},
        epochs,
        seeds,
    )
    orderings(
        256,
        1257,
        {"none": Constant(0.0), "steady 0.5": Constant(0.5), "late 0.5": late_dropout(0.5)},
        epochs,
        seeds,
    )
    costs(100 if quick else 400)


if __name__ == "__main__":
    main()
