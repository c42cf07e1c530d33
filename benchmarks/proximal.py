"""The cost of the proximal step: its time as a share of the optimizer's own step, and of the obvious loop's.

`python -m benchmarks.proximal` prints one table; `--quick` takes fewer rounds. All variants run in turns, in a
new order each round, on weights of the shapes of a ResNet-18; each figure is a median with quartiles, on a CPU of
the CPU time of one thread. On a CPU torch's AdamW processes the weights one by one, unless it is fused.

Where torchao is installed, "torchao PAT, L1" is what its `PruneOptimizer` adds to the step of the optimizer in it.
"""

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks._clocks import milliseconds
from benchmarks._resnets import resnet18, shapes_of
from benchmarks._rotation import Spread
from benchmarks._table import print_table
from lightning_reg import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, Penalty
from lightning_reg.callbacks.penalties.proximal_step import shrink

try:
    from torchao.prototype.pat import PruneOptimizer
except ImportError:
    PruneOptimizer = None

STRENGTH = 1e-6
TARGET = 0.5
"""The largest share of the step of AdamW, for L1 on a CPU."""

PENALTIES: Mapping[str, Penalty] = {
    "L1": L1Penalty(STRENGTH, mode="proximal"),
    "elastic net": ElasticNetPenalty(STRENGTH, mode="proximal"),
    "group lasso": GroupLassoPenalty(STRENGTH, mode="proximal"),
}
OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-6),
    "AdamW fused": lambda weights: torch.optim.AdamW(weights, lr=1e-6, fused=True),
    "SGD momentum": lambda weights: torch.optim.SGD(weights, lr=1e-6, momentum=0.9),
}


@torch.no_grad()
def obvious_loop(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> None:
    """Take the proximal step of L1 in the obvious way."""
    (group,) = optimizer.param_groups
    for weight in weights:
        if isinstance(optimizer, torch.optim.SGD):
            threshold: float | Tensor = STRENGTH * group["lr"] / (1 - group["momentum"])
        else:
            state = optimizer.state[weight]
            second_moment = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"].item())
            threshold = STRENGTH * group["lr"] / (second_moment.sqrt() + group["eps"])
        weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))


def weights_like_a_resnet18() -> list[nn.Parameter]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parameters = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes_of(resnet18)]
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return parameters


def rows(name: str, rounds: int) -> list[list[str]]:
    parameters = weights_like_a_resnet18()
    optimizer = OPTIMIZERS[name](parameters)
    optimizer.step()  # makes its state
    weights = [parameter for parameter in parameters if parameter.ndim > 1]

    def proximal(penalty: Penalty) -> Callable[[], object]:
        return lambda: shrink(penalty.proximal, optimizer, weights, penalty.strength, elementwise=penalty.elementwise)

    actions: dict[str, Callable[[], object]] = {label: proximal(penalty) for label, penalty in PENALTIES.items()}
    if PruneOptimizer is not None:
        actions["torchao PAT, L1"] = pruning_step(name)
    times = milliseconds(
        {"step": optimizer.step, "L1 loop": lambda: obvious_loop(optimizer, weights), **actions}, rounds
    )
    step, loop = times.pop("step"), times["L1 loop"]
    if "torchao PAT, L1" in times:
        times["torchao PAT, L1"] = [both - own for both, own in zip(times["torchao PAT, L1"], step, strict=True)]
    return [
        [
            name,
            f"{Spread.of(step)}",
            label,
            str(Spread.of(own)),
            f"{Spread.of([mine / theirs for mine, theirs in zip(own, step, strict=True)]).median:.2f}",
            f"{TARGET:.2f}" if (name, label) == ("AdamW", "L1") else "",
            f"{Spread.of([mine / theirs for mine, theirs in zip(own, loop, strict=True)]).median:.2f}",
        ]
        for label, own in times.items()
    ]


def pruning_step(name: str) -> Callable[[], object]:
    """Return a step of torchao's optimizer for L1, around an optimizer and weights of its own."""
    parameters = weights_like_a_resnet18()
    optimizer = OPTIMIZERS[name](parameters)
    (group,) = optimizer.param_groups
    group["params"] = [parameter for parameter in parameters if parameter.ndim == 1]
    chosen = [parameter for parameter in parameters if parameter.ndim > 1]
    optimizer.add_param_group({"params": chosen, "prox_type": "ProxLasso", "group_type": "ElemGrouper"})
    step: Callable[[], object] = PruneOptimizer(optimizer, reg_lambda=STRENGTH).step
    return step


def main() -> None:
    torch.set_num_threads(1)
    rounds = 10 if "--quick" in sys.argv else 40
    print_table(
        ["optimizer", "its step, ms", "proximal step", "ms", "of the optimizer's", "CPU target", "of the L1 loop's"],
        [row for name in OPTIMIZERS for row in rows(name, rounds)],
    )


if __name__ == "__main__":
    main()
