"""Compare the steps of a regularization path of 50 strengths with the steps of a single fit.

`python -m benchmarks.path` prints one table; `--quick` leaves out the smaller tolerance. A step is one gradient over
all samples, so it is also one epoch. A single fit starts with all weights at zero and ends at the same optimality
residual. There are two: at the strength with the best validation loss, and at the smallest strength. The steps of the
path include the search for the largest strength.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn

from benchmarks._table import print_table
from lightning_reg import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, Penalty, RegularizationPath

STRENGTHS = 50
SMALLEST = 1e-2
MOST = 20_000
"""The largest number of epochs per strength; no strength needs so many."""
TARGET = 3.0
"""The path should take at most this multiple of the steps of a single fit at the best strength."""
Optimizers = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.3),
    "SGD momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.02),
}


@dataclass
class Problem:
    """A linear model's penalty and loss, with samples for training and validation."""

    penalty: Penalty
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        self.inputs = (self.inputs - self.inputs.mean(0)) / self.inputs.std(0)
        validates = torch.arange(len(self.inputs)) % 3 == 2
        self.training = self.inputs[~validates], self.targets[~validates]
        self.validation = self.inputs[validates], self.targets[validates]


def problems() -> dict[str, Problem]:
    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum() / (2 * len(targets))

    patients, progress = map(torch.tensor, load_diabetes(return_X_y=True))
    progress = (progress / progress.std())[:, None]
    tasks = torch.hstack([progress, progress * patients[:, [1]].sign(), 442 * patients[:, [0]] * patients[:, [2]]])
    cells, is_benign = map(torch.tensor, load_breast_cancer(return_X_y=True))
    # Leave out radius, perimeter and area: they are nearly collinear, so gradient descent would converge slowly.
    cells = cells[:, [1, 4, 5, 7, 8, 9, 11, 14, 27, 28]]
    logistic = nn.functional.binary_cross_entropy_with_logits
    return {
        "lasso": Problem(L1Penalty(0.0, mode="proximal"), squares, patients, progress),
        "elastic net": Problem(ElasticNetPenalty(0.0, 0.6, mode="proximal"), squares, patients, progress),
        "multi-task lasso": Problem(GroupLassoPenalty(0.0, 1, mode="proximal"), squares, patients, tasks),
        "L1 logistic": Problem(L1Penalty(0.0, mode="proximal"), logistic, cells, is_benign[:, None].double()),
    }


class Linear(LightningModule):
    """A linear model that starts at zero and takes all samples as one batch."""

    def __init__(self, problem: Problem, optimizer: Optimizers) -> None:
        super().__init__()
        self.layer = nn.Linear(problem.inputs.shape[1], problem.targets.shape[1]).double()
        for parameter in self.layer.parameters():
            nn.init.zeros_(parameter)
        self.problem, self.make_optimizer = problem, optimizer

    def training_step(self, *_: int) -> Tensor:
        inputs, targets = self.problem.training
        return self.problem.loss(self.layer(inputs), targets)

    def validation_step(self, *_: int) -> None:
        inputs, targets = self.problem.validation
        self.log("val/loss", self.problem.loss(self.layer(inputs), targets), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class Steps(Callback):
    """Record the strength of each step."""

    def __init__(self, penalty: Penalty) -> None:
        self.penalty = penalty
        self.strengths: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.strengths.append(self.penalty.strength)


def fit(path: RegularizationPath, module: Linear) -> list[float]:
    """Train along a path, and return the strength of each step."""
    steps = Steps(path.penalty)
    trainer = Trainer(
        max_epochs=-1,
        callbacks=[path, steps],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,
    )
    trainer.fit(module, range(1), range(1) if path.monitor else None)
    return steps.strengths


def row(name: str, problem: Problem, optimizer: str, tolerance: float) -> list[str]:
    path = RegularizationPath(
        problem.penalty,
        strengths=STRENGTHS,
        smallest=SMALLEST,
        epochs=MOST,
        tolerance=tolerance,
        monitor="val/loss",
    )
    steps = fit(path, Linear(problem, OPTIMIZERS[optimizer]))
    result = path.result
    if result is None:
        raise RuntimeError("the path ended without a strength")
    strengths = set(result.strengths)
    search = sum(strength not in strengths for strength in steps)
    ones = []
    for strength in (result.strengths[result.best], result.strengths[-1]):
        alone = RegularizationPath(problem.penalty, strengths=[strength], epochs=MOST, tolerance=tolerance)
        ones.append(len(fit(alone, Linear(problem, OPTIMIZERS[optimizer]))))
    shares = [f"{len(steps) / one:.1f}" for one in ones]
    return [
        name,
        optimizer,
        f"{tolerance:g}",
        *(f"{count}" for count in (search, len(steps) - search)),
        f"{result.best + 1}",
        *(f"{count}" for count in ones),
        *shares,
        f"{TARGET:.1f}",
    ]


def main() -> None:
    import logging
    import warnings

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    tolerances = [1e-2] if "--quick" in sys.argv else [1e-2, 1e-3]
    print_table(
        [
            "problem",
            "optimizer",
            "tolerance",
            "steps of search",
            "steps of strengths",
            "best strength (of 50)",
            "steps of best fit",
            "steps of smallest fit",
            "all / best fit",
            "all / smallest fit",
            "target for best fit",
        ],
        [
            row(name, problem, optimizer, tolerance)
            for tolerance in tolerances
            for name, problem in problems().items()
            for optimizer in OPTIMIZERS
        ],
    )


if __name__ == "__main__":
    main()
