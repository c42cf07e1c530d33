"""The base of callbacks that keep the state of their run for checkpoints."""

from abc import abstractmethod
from typing import Any

from typing_extensions import override

from lightning_reg.callbacks.trainer.during_fit import DuringFit, RunT
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer


class KeepsState(DuringFit[RunT]):
    """A callback whose run has a state in checkpoints.

    A subclass continues from `_saved` once training starts. It can do so no earlier, because some strategies load the
    checkpoint after `on_fit_start`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._saved: dict[str, Any] = {}
        """The state of the previous run, or of a checkpoint."""

    @abstractmethod
    def state_of(self, run: RunT) -> dict[str, Any]:
        """Return the state of a run."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._saved = {}  # of the previous run

    @override
    def end_run(self, trainer: Trainer, run: RunT | None) -> None:
        super().end_run(trainer, run)
        if run is not None:
            self._saved = self.state_of(run)

    @override
    def state_dict(self) -> dict[str, Any]:
        # After `fit`, the state at its end: the trainer may still save a checkpoint.
        return self._saved if self._run is None else self.state_of(self._run)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict
