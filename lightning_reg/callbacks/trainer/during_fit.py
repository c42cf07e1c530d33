"""What a callback knows during one fit: made at its start, dropped at its end, in no pickle, one at a time."""

import weakref
from typing import Any, ClassVar, Generic, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from typing_extensions import override

from lightning_reg.callbacks.trainer.settings import call_of

RunT = TypeVar("RunT")


class DuringFit(Callback, Generic[RunT]):
    """A callback with a run: what it knows of one trainer, module and set of optimizers.

    A subclass makes the run in `make_run` and undoes in `end_run` what it has changed. Its run is in `_run` from
    `on_fit_start` on; hooks that a tuner calls before find None there.
    """

    regularizes: ClassVar[bool] = True
    """Whether it changes what is trained, so that its settings belong to the hyperparameters of the run."""

    stages: ClassVar[frozenset[str]] = frozenset({"fit"})
    """What it has a run for."""

    def __init__(self) -> None:
        super().__init__()
        self._run: RunT | None = None
        self._trainer: weakref.ref[Trainer] | None = None
        """The one that the run belongs to."""

    @property
    def run(self) -> RunT | None:
        """What the callback knows during the fit that is running; None outside of one."""
        return self._run

    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> RunT | None:
        """Return what there is to know at the start of `fit`."""
        raise NotImplementedError

    def end_run(self, trainer: Trainer, run: RunT | None) -> None:
        """Undo what has been changed; without a run, what `setup` has."""

    @override
    def __repr__(self) -> str:
        return call_of(self)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # Lightning pickles the trainer with its callbacks while it trains, where a data loader spawns its workers and
        # `collate_fn` is a method of the data module. A run holds hooks and optimizers, which cannot be pickled.
        return {**vars(self), "_run": None, "_trainer": None}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in self.stages:
            return
        other = self._trainer() if self._trainer is not None else None
        # Another one whose hooks never ran, because those of a callback before had raised, is running no more.
        if other is not None and other is not trainer and other.state.status == TrainerStatus.RUNNING:
            msg = (
                f"{self!r} is in another Trainer that is running, and what it knows of that run would be lost."
                " Make one callback for each Trainer, or copy it: `copy.deepcopy(callback)`."
            )
            raise MisconfigurationException(msg)
        self._trainer = weakref.ref(trainer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "fit" in self.stages:
            self._run = self.make_run(trainer, pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in self.stages:
            self._end(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning calls no `teardown` then.
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if self._trainer is None or self._trainer() is not trainer:  # the run is that of another trainer
            return
        run, self._run, self._trainer = self._run, None, None
        self.end_run(trainer, run)
