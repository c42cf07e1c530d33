"""The cost of a penalty: extra time and memory of a training step, as a share of the obvious loop's.

`python -m benchmarks.penalties` prints one table; `--quick` takes fewer rounds. Each figure is a median over rounds,
with quartiles. The table is about steps that log nothing, 49 of 50 with Lightning's default `log_every_n_steps`: in
these, `mode="grad"` does not compute the value of the penalty.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

# Silence the profiler; torch reads this on import.
os.environ |= {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from benchmarks._resnets import resnet50, shapes_of
from benchmarks._rotation import Spread, measure
from benchmarks._table import print_table
from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty

STRENGTH = 1e-6
BATCH = 256

Term = Callable[[Sequence[Tensor]], Tensor]


# On a CPU, the share of the obvious loop's extra time that each variant may take.
TARGETS = {
    "L1 loss": 1.0,
    "L1 grad": 0.4,
    "L2 loss": 0.3,
    "L2 grad": 0.2,
    "elastic net loss": 0.65,
    "elastic net grad": 0.3,
}


def l1(weights: Sequence[Tensor]) -> Tensor:
    return torch.as_tensor(sum(weight.abs().sum() for weight in weights))


def l2(weights: Sequence[Tensor]) -> Tensor:
    return torch.as_tensor(sum(weight.pow(2).sum() for weight in weights))


def elastic_net(weights: Sequence[Tensor]) -> Tensor:
    return torch.as_tensor(sum(0.5 * weight.abs().sum() + 0.25 * weight.pow(2).sum() for weight in weights))


class Network(LightningModule):
    """Trains a module that returns a loss, with an optional extra term."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.term: Term | None = None

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.body()
        if self.term is not None:
            loss = loss + STRENGTH * self.term([weight for weight in self.parameters() if weight.ndim > 1])
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


class ObviousLoop(Callback):
    """Adds a term to the loss in `training_step`, as hand-written code does."""

    def __init__(self, network: Network, term: Term) -> None:
        self.network = network
        self.term = term

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.network.term = self.term

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.network.term = None


class WeightDecay(Callback):
    """Switches on the optimizer's own weight decay."""

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        trainer.optimizers[0].param_groups[0]["weight_decay"] = 2 * STRENGTH

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.0


class Layer(torch.autograd.Function):
    """Imitates a layer: it keeps activations until backward, which then makes a dense gradient of the weight."""

    @staticmethod
    @override
    def forward(ctx: Any, state: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(weight))
        return state.clone()

    @staticmethod
    @override
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        (activations,) = ctx.saved_tensors
        return grad_output, torch.full_like(activations, 1e-6)


class Weights(nn.Module):
    """Weights of given shapes: training takes almost no time, but makes all gradients."""

    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)

    @override
    def forward(self) -> Tensor:
        loss = torch.ones((), device=self.weights[0].device)
        for weight in self.weights:
            loss = Layer.apply(loss, weight)  # type: ignore[no-untyped-call]
        return loss


class SmallLayers(nn.Module):
    """A network of 300 small layers with a real forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(300))
        self.register_buffer("inputs", torch.randn(BATCH, 64))

    @override
    def forward(self) -> Tensor:
        state = self.get_buffer("inputs")
        for layer in self.layers:
            state = state + layer(state).relu()
        return state.square().mean()


def transformer() -> Iterator[tuple[int, ...]]:
    """Yield the shapes of the parameters of a BERT-base."""
    yield from [(30522, 768), (512, 768), (768,), (768,)]
    for _ in range(12):
        yield from [(2304, 768), (2304,), (768, 768), (768,), (768,), (768,)]
        yield from [(3072, 768), (3072,), (768, 3072), (768,), (768,), (768,)]


def variants(network: Network) -> dict[str, list[Callback]]:
    return {
        "none": [],
        "L1 loop": [ObviousLoop(network, l1)],
        "L1 loss": [L1Penalty(STRENGTH)],
        "L1 grad": [L1Penalty(STRENGTH, mode="grad")],
        "L2 loop": [ObviousLoop(network, l2)],
        "L2 loss": [L2Penalty(STRENGTH)],
        "L2 grad": [L2Penalty(STRENGTH, mode="grad")],
        "L2 weight_decay": [WeightDecay()],
        "elastic net loop": [ObviousLoop(network, elastic_net)],
        "elastic net loss": [ElasticNetPenalty(STRENGTH)],
        "elastic net grad": [ElasticNetPenalty(STRENGTH, mode="grad")],
    }


def rows(name: str, body: nn.Module, rounds: int) -> Iterator[list[str]]:
    network = Network(body)
    measured = measure(network, variants(network), rounds=rounds)
    base = measured.pop("none")
    step = Spread.of(base.milliseconds)
    yield [name, "none", f"(step: {step})", "", "", "", ""]
    size = sum(weight.nbytes for weight in network.parameters())
    for variant, cost in measured.items():
        extra = cost.extra_milliseconds(base)
        loop = measured[f"{variant.rpartition(' ')[0]} loop"].extra_milliseconds(base)
        target = TARGETS.get(variant)
        yield [
            name,
            variant,
            str(extra),
            f"{extra.median / step.median:.1%}",
            f"{extra.median / loop.median:.2f}",
            "" if target is None else f"{target:.2f}",
            f"{cost.extra_bytes(base) / size:.1%}",
        ]


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's advice about data loaders
    scale = 1 if "--quick" in sys.argv else 3
    print_table(
        ["weights", "penalty", "extra ms", "of the step", "of the loop", "CPU target", "peak extra memory"],
        [
            *rows("ResNet-50", Weights(shapes_of(resnet50)), rounds=6 * scale),
            *rows("transformer", Weights(transformer()), rounds=2 * scale),
            *rows("300 small layers", SmallLayers(), rounds=10 * scale),
        ],
    )


if __name__ == "__main__":
    main()
