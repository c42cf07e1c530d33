"""The tables that say, before the first training step, what will be done to which weight and to which module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_reg.callbacks.trainer.loggers import prefixed, tensorboard_writers
from lightning_reg.callbacks.trainer.packages import Trainer, rank_zero_info
from lightning_reg.selection.weights import Weight
from lightning_reg.tensorboard import tags

_CONSOLE_ROWS = 60

Columns = tuple[str, str, str]


@dataclass(frozen=True)
class Plan:
    """What one callback will do.

    Args:
        settings: The callback and its settings.
        shapes: Every weight of the model with its shape, in order; or every module; each with what describes it.
        actions: For each of them the callback acts on, what it does.
        left_out: For each other one, why it does nothing.

    """

    settings: str
    shapes: Mapping[str, str]
    actions: Mapping[str, str]
    left_out: Mapping[str, str]


def describe(weight: Weight) -> str:
    """Return the shape of a weight, and whether it is none of a layer's."""
    shape = " x ".join(map(str, weight.shape)) or "scalar"
    return f"{shape}, {weight.outside}" if weight.outside else shape


def publish(
    trainer: Trainer, plans: Sequence[Plan], columns: Columns = ("weight", "shape", "penalties"), tag: str = tags.SETUP
) -> None:
    """Print one table for all `plans` on rank 0, and write it to every logger that takes text."""
    shapes = {name: shape for plan in plans for name, shape in plan.shapes.items()}
    rows = [(name, shape, _action(name, plans)) for name, shape in shapes.items()]
    settings = [plan.settings for plan in plans]
    hidden = len(rows) - _CONSOLE_ROWS
    rest = [f"  ... and {hidden} more {columns[0]}s; TensorBoard's text {tag!r} has them all."] if hidden > 0 else []
    rank_zero_info("\n".join(["Regularization plan", *settings, *_aligned([columns, *rows[:_CONSOLE_ROWS]]), *rest]))
    for logger, writer in tensorboard_writers(trainer):
        writer.add_text(prefixed(logger, tag), _markdown(settings, columns, rows), global_step=trainer.global_step)


def _action(name: str, plans: Sequence[Plan]) -> str:
    actions = [plan.actions[name] for plan in plans if name in plan.actions]
    return " + ".join(actions) or "none: " + "; ".join(
        dict.fromkeys(plan.left_out[name] for plan in plans if name in plan.left_out)
    )


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
