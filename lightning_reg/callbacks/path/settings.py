"""The arguments of a path: their checks, and what its parts read of them."""

from collections.abc import Sequence
from typing import Literal, Protocol

from lightning_reg import _checks
from lightning_reg.callbacks.path.result import Rule
from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.penalties.formula import Formula

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
    """Return how many strengths there are."""
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
        msg = f"`penalty` must be a penalty with mode='proximal', got {penalty!r}."
        raise TypeError(msg)
    if penalty.mode != "proximal" or penalty.schedule is not None:
        msg = (
            f"`penalty` must have mode='proximal', the one that makes zeros, and no schedule, got {penalty!r}."
            " The path itself changes the strength."
        )
        raise ValueError(msg)


def check_relaxed(relaxed_epochs: int, penalty: Penalty, *, restore: bool) -> None:
    """Raise if there is no choice, or no zeros, to train on with."""
    if relaxed_epochs and not restore:
        msg = f"`relaxed_epochs` trains the choice on, so it needs `restore=True`, got relaxed_epochs={relaxed_epochs}."
        raise ValueError(msg)
    if relaxed_epochs and not penalty.keeps_zeros:
        msg = (
            "`relaxed_epochs` keeps the zeros of the choice, so it needs a penalty that makes entries zero"
            f" (`keeps_zeros`), got {relaxed_epochs} for {penalty!r}."
        )
        raise ValueError(msg)


def check_limit(strengths: int | list[float], penalty: Penalty) -> None:
    """Raise if the largest strength is not given, and cannot be computed."""
    is_known = type(penalty).vanishing_strengths is not Formula.vanishing_strengths
    if isinstance(strengths, int) and (not is_known or getattr(penalty, "l1_ratio", 1.0) == 0):
        msg = (
            "`strengths` must be a list of strengths for a penalty that does not know at which strength weights"
            f" vanish (`vanishing_strengths`), got {strengths} for {penalty!r}."
        )
        raise ValueError(msg)
