"""The arguments of a path, and their checks."""

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from lightning_reg import _checks
from lightning_reg.callbacks.path.result import Rule
from lightning_reg.callbacks.penalties.base import Penalty

Direction = Literal["down", "up"]
MonitorMode = Literal["min", "max"]


class Settings(Protocol):
    """The arguments of `RegularizationPath`."""

    penalty: Penalty
    strengths: int | list[float]
    smallest: float
    epochs: int
    tolerance: float | None
    monitor: str | None
    monitor_mode: MonitorMode
    rule: Rule
    direction: Direction
    restore: bool
    relaxed_epochs: int


def count_of(strengths: int | Sequence[float]) -> int:
    """Return the number of strengths."""
    return strengths if isinstance(strengths, int) else len(strengths)


def checked_strengths(strengths: object) -> int | list[float]:
    """Return the argument `strengths`, or raise if it is neither a number of strengths nor a list of them."""
    if not _checks.is_list(strengths):
        return _checks.count("strengths", strengths, 2)
    values = [_checks.positive("strengths", value) for value in strengths]
    if not values or len(set(values)) < len(values):
        msg = f"`strengths` must be at least 2, or a list of different strengths > 0, got {strengths!r}."
        raise ValueError(msg)
    return values


def check_penalty(penalty: object) -> None:
    """Raise if the path cannot set the strength of the penalty."""
    if not isinstance(penalty, Penalty):
        msg = f"`penalty` must be a penalty of this package with mode='proximal', got {penalty!r}."
        raise TypeError(msg)
    if penalty.mode != "proximal" or penalty.schedule is not None:
        msg = (
            "`penalty` must have mode='proximal', which makes exact zeros, and no schedule, because the path sets the"
            f" strength, got {penalty!r}."
        )
        raise ValueError(msg)


def check_monitor(monitor: object) -> str | None:
    """Return the argument `monitor`, or raise if it is not a name."""
    if monitor is not None and not isinstance(monitor, str):
        msg = f"`monitor` must be the name of a logged value, or None, got {monitor!r}."
        raise TypeError(msg)
    return monitor


def check_rule(rule: object, monitor: str | None) -> None:
    """Raise if the path has no such rule, or the rule needs a monitor."""
    if _checks.one_of("rule", rule, get_args(Rule)) == "one_se" and monitor is None:
        msg = (
            "`rule='one_se'` needs a `monitor`, to compute a standard error over validation batches, got"
            " monitor=None. Pass the name of a value that `validation_step` logs, or use `rule='best'`."
        )
        raise ValueError(msg)


def check_relaxed(relaxed_epochs: int, penalty: Penalty, *, restore: bool) -> None:
    """Raise if training without the penalty would lack a chosen strength, or its zeros."""
    if relaxed_epochs and not restore:
        msg = (
            "`relaxed_epochs` starts from the weights of the chosen strength, so it needs `restore=True`, got"
            f" relaxed_epochs={relaxed_epochs} and restore=False."
        )
        raise ValueError(msg)
    if relaxed_epochs and not penalty.keeps_zeros:
        msg = (
            "`relaxed_epochs` keeps the zeros of the chosen strength, so it needs a penalty that makes entries zero"
            f" (`keeps_zeros`), got {relaxed_epochs} for {penalty!r}."
        )
        raise ValueError(msg)


def check_limit(strengths: int | list[float], penalty: Penalty) -> None:
    """Raise if the path must compute the largest strength, and the penalty has no formula for it."""
    if isinstance(strengths, int) and not penalty.has_vanishing_strengths:
        msg = (
            f"`strengths` must be a list of numbers for {penalty!r}, because this penalty cannot compute the strength"
            f" at which weights vanish (`vanishing_strengths`), got {strengths}."
        )
        raise ValueError(msg)
