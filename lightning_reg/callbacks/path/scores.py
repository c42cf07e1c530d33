"""Read the monitored value of each strength, and its standard error over validation batches."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_reg.callbacks.trainer import logged, state
from lightning_reg.callbacks.trainer.packages import MisconfigurationException, Trainer


@dataclass
class Scores:
    """Read the monitor of a path."""

    monitor: str
    with_error: bool
    """Whether the standard error is needed."""
    value: float | None = None
    """The monitored value in the last validation of this epoch; None if validation does not log it."""
    error: float = math.nan
    _sums: tuple[float, float] = (0.0, 0.0)
    _batches: list[float] = field(default_factory=list)

    def begin_epoch(self) -> None:
        """Forget the values of the last epoch."""
        self.value, self.error = None, math.nan

    def begin_validation(self) -> None:
        """Forget the values of the last validation's batches."""
        self._sums, self._batches = (0.0, 0.0), []

    def end_batch(self, trainer: Trainer) -> None:
        """Store the value of one batch."""
        if not self.with_error:
            return
        sums = logged.logged_sums(trainer, self.monitor)
        if sums is not None:
            total, count = sums[0] - self._sums[0], sums[1] - self._sums[1]
            self._sums = sums
            if count > 0:
                self._batches.append(total / count)

    def end_validation(self, trainer: Trainer) -> None:
        """Store the value of one validation, if it logged one."""
        # If training logs the value, only the mean of the last epoch exists at this point.
        if not logged.is_logged(trainer, self.monitor):
            return
        self.value = self._of_all_ranks(trainer, trainer.callback_metrics[self.monitor])
        if self.with_error:
            self.error = self._error(trainer)

    def end_epoch(self, trainer: Trainer) -> tuple[float, float]:
        """Return the score at the end of an epoch, and its standard error."""
        if self.value is None:
            found = trainer.callback_metrics.get(self.monitor)
            if found is None or logged.is_outdated(trainer, self.monitor):
                known = ", ".join(sorted(map(str, trainer.callback_metrics))) or "none"
                msg = (
                    f"`monitor` must be a value that the module logs in every epoch, got {self.monitor!r}. Logged"
                    f" values: {known}. Call `self.log` in `validation_step`, in every epoch; `on_train_epoch_end` is"
                    " too late."
                )
                raise MisconfigurationException(msg)
            self.value = self._of_all_ranks(trainer, found)
        if self.with_error and math.isnan(self.error) and not math.isnan(self.value):
            msg = (
                "`rule='one_se'` needs the value of `monitor` in two or more validation batches, but"
                f" {self.monitor!r} has fewer. Log a mean over samples in `validation_step`, as in"
                f" `self.log({self.monitor!r}, loss)`, or use `rule='best'`."
            )
            raise MisconfigurationException(msg)
        return self.value, self.error

    @staticmethod
    def _of_all_ranks(trainer: Trainer, value: Tensor) -> float:
        return float(state.mean_over_ranks(trainer, value.detach().float()))

    def _error(self, trainer: Trainer) -> float:
        """Return the standard error of the mean over the batches of all ranks; NaN for fewer than two batches."""
        values = torch.tensor(self._batches, dtype=torch.float64)
        count, total, squares = state.sums_over_ranks(
            trainer, torch.stack([torch.tensor(len(values)).double(), values.sum(), values.square().sum()])
        ).tolist()
        if count < 2:  # noqa: PLR2004  # one value has no spread
            return math.nan
        variance = max(squares - total**2 / count, 0.0) / (count - 1)
        return math.sqrt(variance / count)
