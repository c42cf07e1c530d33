"""The cost of weight decay in an optimizer step: `WeightDecay` beside AdamW's own decay.

`python -m benchmarks.decay` prints one table; `--quick` takes fewer rounds. All variants run in turns, in a new order
each round, on weights of the shapes of a ResNet-50; each figure is a median with quartiles.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn

from benchmarks._clocks import milliseconds
from benchmarks._resnets import resnet50, shapes_of
from benchmarks._rotation import Spread
from benchmarks._table import print_table
from lightning_reg import Select
from lightning_reg.callbacks.decay.kinds import Kind
from lightning_reg.callbacks.decay.run import Run
from lightning_reg.callbacks.trainer.guarded_steps import Guard
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps, Turn
from lightning_reg.selection import named_weights, select_weights

DECAY = 1e-3
TARGET = 1.1
"""Largest extra time of decoupled decay, as a multiple of the extra time of AdamW's own decay."""
KINDS: tuple[Kind, ...] = ("decoupled", "independent", "corrected", "cautious")


def stepping(name: str, weights: list[torch.Tensor]) -> Callable[[], object]:
    """Return a function that takes a step of Adam, with AdamW's own decay, decay by callback, or no decay."""
    module = nn.ParameterList(nn.Parameter(weight.clone()) for weight in weights)
    for parameter in module:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    decay = DECAY if name == "AdamW" else 0.0
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, weight_decay=decay, foreach=True)
    if name in KINDS:
        selection = select_weights(named_weights(module), Select(min_ndim=1))
        guard = Guard(selection, "WeightDecay", "decayed")
        run = Run("decay", DECAY, next(kind for kind in KINDS if kind == name), selection, guard)
        steps = AroundSteps(run.after_update, lambda own: run.before_update(0, own, 0), turn=Turn.UPDATE)
        steps.add([optimizer])

        def step() -> None:
            run.shares.clear()
            optimizer.step()

        return step
    return optimizer.step


def main() -> None:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = [torch.randn(shape, device=device) for shape in shapes_of(resnet50)]
    names = ["Adam", "AdamW", *KINDS]
    times = milliseconds({name: stepping(name, weights) for name in names}, 10 if "--quick" in sys.argv else 40)
    plain = times.pop("Adam")
    extra = {name: [own - base for own, base in zip(each, plain, strict=True)] for name, each in times.items()}
    reference = Spread.of(extra["AdamW"]).median
    print_table(
        ["decay", "Adam's step, ms", "extra, ms", "of AdamW's own", "target"],
        [
            [
                name,
                str(Spread.of(plain)),
                str(Spread.of(own)),
                f"{Spread.of(own).median / reference:.2f}",
                f"{TARGET:.2f}" if name == "decoupled" else "",
            ]
            for name, own in extra.items()
        ],
    )


if __name__ == "__main__":
    main()
