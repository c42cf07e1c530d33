"""A schedule within a run: its checked values, its length, and the messages if the length is unknown or changes."""

import math
from collections.abc import Callable

from lightning_reg import _checks
from lightning_reg.callbacks.trainer import progress
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer, rank_zero_warn
from lightning_reg.schedules import Schedule, resolve
from lightning_reg.schedules.base import UnknownLengthError


class Timetable:
    """A user's schedule with its durations in ticks of one run; call it with a tick.

    Args:
        schedule: A schedule, or any callable from tick to value.
        trainer: The trainer that is about to train.
        pl_module: The module that it trains.
        in_epochs: Whether a tick is an epoch; otherwise it is an optimizer step.

    Raises:
        ValueError: If a duration is a share of a run of unknown length.

    """

    def __init__(
        self,
        schedule: Callable[[int], float],
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        in_epochs: bool = False,
    ) -> None:
        self._schedule, self._trainer, self._module = schedule, trainer, pl_module
        self._length = progress.total_epochs if in_epochs else progress.total_ticks
        self._batches = trainer.num_training_batches
        self._has_warned = False
        self.total = self._length(trainer, pl_module)
        """The length of the run in ticks; infinite if unknown."""
        try:
            self.resolved = resolve(schedule, self.total)
        except UnknownLengthError as error:
            remedy = _remedy(trainer, pl_module, in_epochs=in_epochs)
            msg = f"{error.fact} Give the duration as an int (ticks), or {remedy}."
            raise ValueError(msg) from None

    def __call__(self, tick: int) -> float:
        """Return the value at `tick`."""
        if self._trainer.num_training_batches != self._batches and not progress.only_measures(self._trainer):
            self._follow_length()
        return self.resolved(tick)

    @property
    def peak(self) -> float:
        """The largest value of the run if it is known beforehand, else 0."""
        bounds = self.resolved.bounds(self.total) if isinstance(self.resolved, Schedule) else None
        return 0.0 if bounds is None else bounds[1]

    def _follow_length(self) -> None:
        """Warn, once, if the number of batches has changed so that shares of the run would be other ticks."""
        before, self._batches = self._batches, self._trainer.num_training_batches
        total = self._length(self._trainer, self._module)
        if self._has_warned or not math.isfinite(total) or resolve(self._schedule, total) == self.resolved:
            return
        self._has_warned = True
        rank_zero_warn(
            f"An epoch has {self._batches} batches now and had {before} before, but the durations in {self._schedule!r}"
            f" stay shares of a run of {self.total:g} ticks, its length when it began, and not of {total:g}."
            " If the data grow during training, give durations as ints (ticks)."
        )


def factor_at(schedule: Callable[[int], float] | None, tick: int, *, is_share: bool = False) -> float:
    """Return a user's factor at `tick`, checked to be >= 0, or in [0, 1] if it is a share; 1 without a schedule."""
    if schedule is None:
        return 1.0
    name, value = f"schedule({tick})", schedule(tick)
    return _checks.in_range(name, value, 0, 1) if is_share else _checks.non_negative(name, value)


def _remedy(trainer: Trainer, pl_module: LightningModule, *, in_epochs: bool) -> str:
    """Return the missing settings that would make the length of the run known."""
    automatic = pl_module.automatic_optimization
    missing = []
    if trainer.max_epochs in (None, -1):
        missing.append("`max_epochs`")
    if math.isinf(trainer.num_training_batches) and not in_epochs:
        missing.append("`limit_train_batches` (an int, because the data are a stream)")
    if not automatic and trainer.max_steps != -1:
        missing.append("no `max_steps`, which counts the steps of all optimizers")
    remedy = f"set {' and '.join(missing)}"
    return f"{remedy}; or `max_steps`" if automatic and not in_epochs else remedy
