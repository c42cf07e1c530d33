"""The base of monitors: they need a logger and readable weights, and they change nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar

from typing_extensions import override

from lightning_reg.callbacks.monitors.dashboard import write_layout, write_network_order
from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.during_fit import DuringFit
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lightning_reg.callbacks.trainer.refusals import refuse_hidden_weights

RunT = TypeVar("RunT")


class Monitor(DuringFit[RunT], ABC):
    """A callback that measures the network during `fit` and logs the results."""

    regularizes = False
    layout: bool
    """Whether to write the charts of TensorBoard's page "Custom Scalars"."""

    @abstractmethod
    def refuse_shared_tags(self, monitors: Sequence[Self]) -> None:
        """Raise if two of the `monitors` of this class would write under the same tags."""

    @abstractmethod
    def watch(self, trainer: Trainer, pl_module: LightningModule) -> RunT:
        """Return the state of the monitor for the fit that starts."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.barebones:
            refuse_hidden_weights(trainer, type(self).__name__)
            _refuse_missing_logger(trainer, type(self).__name__)
            self.refuse_shared_tags(state.callbacks_of(trainer, type(self)))

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> RunT | None:
        if trainer.barebones:
            rank_zero_info(f"{type(self).__name__} is off: `Trainer(barebones=True)` logs nothing.")
            return None
        run = self.watch(trainer, pl_module)
        write_network_order(trainer, pl_module)
        if self.layout:
            write_layout(trainer)
        return run


def _refuse_missing_logger(trainer: Trainer, name: str) -> None:
    """Raise if the trainer has no logger for the results of the monitor called `name`."""
    if not trainer.loggers:
        msg = (
            f"{name} needs a logger to write to, but the trainer has none."
            " Leave `Trainer(logger=...)` at its default, or pass a logger."
        )
        raise MisconfigurationException(msg)
