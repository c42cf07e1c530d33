"""The tables printed before the first training step: what will happen to each weight and module."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_reg.callbacks.trainer.folding import folded
from lightning_reg.callbacks.trainer.loggers import prefixed, tensorboard_writers
from lightning_reg.callbacks.trainer.packages import Trainer, rank_zero_info
from lightning_reg.selection import Selection, Weight
from lightning_reg.tensorboard import tags

_CONSOLE_ROWS = 30

Columns = tuple[str, str, str]


@dataclass(frozen=True)
class Plan:
    """The actions of one callback.

    Args:
        settings: The callback and its settings.
        shapes: Every weight of the model in order, with its shape; or every module with its description.
        actions: The action of the callback on each weight or module that it changes.
        left_out: The reason for each weight or module that it leaves alone.

    """

    settings: str
    shapes: Mapping[str, str]
    actions: Mapping[str, str]
    left_out: Mapping[str, str]

    @property
    def title(self) -> str:
        """The name of the callback's class."""
        return self.settings.partition("(")[0]


def plan_of(settings: str, selection: Selection, trained: Container[Tensor], action: Callable[[Weight], str]) -> Plan:
    """Return the plan of a callback on weights: `action` of each chosen one, with a note if it is not in `trained`."""
    return Plan(
        settings,
        shapes={weight.name: describe(weight) for weight in selection.weights},
        actions={
            weight.name: action(weight) + ("" if weight.parameter in trained else " (not trained at the moment)")
            for weight in selection.chosen
        },
        left_out=selection.left_out,
    )


def describe(weight: Weight) -> str:
    """Return the shape of a weight, and a note if it is not a matrix or kernel of a layer."""
    shape = " x ".join(map(str, weight.shape)) or "scalar"
    return f"{shape}, {weight.outside}" if weight.outside else shape


def publish(
    trainer: Trainer, plans: Sequence[Plan], columns: Columns = ("weight", "shape", "penalties"), tag: str = tags.SETUP
) -> None:
    """Print one table for all `plans` on rank 0, and write it to every logger that takes text."""
    shapes = {name: shape for plan in plans for name, shape in plan.shapes.items()}
    rows = [(name, shape, _action(name, plans)) for name, shape in shapes.items()]
    settings = [plan.settings for plan in plans]
    short = folded(rows)
    hidden = len(short) - _CONSOLE_ROWS
    rest = [f"  ... and {hidden} more rows; TensorBoard's text {tag!r} has them all."] if hidden > 0 else []
    # Readers can count a few rows themselves.
    totals = [_total(plan, columns[0]) for plan in plans] if len(short) < len(rows) or hidden > 0 else []
    table = _aligned([columns, *short[:_CONSOLE_ROWS]])
    rank_zero_info("\n".join(["Regularization plan", *settings, *table, *rest, *totals]))
    for logger, writer in tensorboard_writers(trainer):
        writer.add_text(prefixed(logger, tag), _markdown(settings, columns, rows), global_step=trainer.global_step)


def _action(name: str, plans: Sequence[Plan]) -> str:
    actions = [plan.actions[name] for plan in plans if name in plan.actions]
    if actions:
        return " + ".join(actions)
    titles: dict[str, dict[str, None]] = {}
    for plan in plans:
        if name in plan.left_out:
            titles.setdefault(plan.left_out[name], {})[plan.title] = None
    if len(titles) == 1:  # the same for all
        return f"none: {next(iter(titles))}"
    return "none: " + "; ".join(f"{reason} ({', '.join(own)})" for reason, own in titles.items())


def _total(plan: Plan, noun: str) -> str:
    """Return how many weights or modules a callback acts on, and how many numbers the weights have."""
    sizes = [plan.shapes[name].partition(",")[0].split(" x ") for name in plan.actions if name in plan.shapes]
    entries = ""
    if sizes and all(part.isdigit() for size in sizes for part in size):
        entries = f", {sum(math.prod(map(int, size)) for size in sizes):,} numbers"
    return f"  total of {plan.title}: {len(plan.actions)} of {len(plan.shapes)} {noun}s{entries}"


def _aligned(rows: Sequence[Columns]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {action}" for name, shape, action in rows]


def _markdown(settings: Sequence[str], columns: Columns, rows: Sequence[Columns]) -> str:
    return "\n".join(
        [
            *(f"- `{line}`" for line in settings),
            "",
            f"| {' | '.join(columns)} |",
            "|---|---|---|",
            *(f"| `{name}` | {shape} | {action} |" for name, shape, action in rows),
        ]
    )
