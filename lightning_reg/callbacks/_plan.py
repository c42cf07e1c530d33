"""The table that says, before the first training step, what will be done to which weight."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_reg.callbacks._loggers import tensorboard_writers
from lightning_reg.tensorboard import tags

_CONSOLE_ROWS = 60


@dataclass(frozen=True)
class Plan:
    """What one callback will do.

    Args:
        settings: The callback and its settings.
        shapes: Every weight of the model with its shape, in order.
        actions: For each weight the callback acts on, what it does.
        left_out: For each other weight, why it does nothing.

    """

    settings: str
    shapes: Mapping[str, Sequence[int]]
    actions: Mapping[str, str]
    left_out: Mapping[str, str]


def call_of(callback: object) -> str:
    """Return the call that makes such a callback: its class and the arguments that it keeps under their names."""
    names = [name for name in inspect.signature(type(callback)).parameters if hasattr(callback, name)]
    return f"{type(callback).__name__}({', '.join(f'{name}={getattr(callback, name)!r}' for name in names)})"


def publish(trainer: Trainer, plans: Sequence[Plan]) -> None:
    """Print one table for all `plans` on rank 0, and write it to every logger that takes text."""
    rows = [
        (name, " x ".join(map(str, shape)) or "scalar", _action(name, plans)) for name, shape in plans[0].shapes.items()
    ]
    settings = [plan.settings for plan in plans]
    hidden = len(rows) - _CONSOLE_ROWS
    rest = [f"  ... and {hidden} more weights; TensorBoard's text {tags.SETUP!r} has them all."] if hidden > 0 else []
    rank_zero_info("\n".join(["Regularization plan", *settings, *_aligned(rows[:_CONSOLE_ROWS]), *rest]))
    for _, writer in tensorboard_writers(trainer):
        writer.add_text(tags.SETUP, _markdown(settings, rows), global_step=trainer.global_step)


def _action(name: str, plans: Sequence[Plan]) -> str:
    actions = [plan.actions[name] for plan in plans if name in plan.actions]
    return " + ".join(actions) or "none: " + "; ".join(dict.fromkeys(plan.left_out[name] for plan in plans))


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    rows = [("weight", "shape", "penalties"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {action}" for name, shape, action in rows]


def _markdown(settings: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> str:
    return "\n".join(
        [
            *(f"- `{line}`" for line in settings),
            "",
            "| weight | shape | penalties |",
            "|---|---|---|",
            *(f"| `{name}` | {shape} | {action} |" for name, shape, action in rows),
        ]
    )
