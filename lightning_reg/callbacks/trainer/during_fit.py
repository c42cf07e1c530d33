"""What a callback knows during one fit: made at its start, dropped at its end, in no pickle, one at a time."""

import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.decays import show_decays
from lightning_reg.callbacks.trainer.loggers import flush
from lightning_reg.callbacks.trainer.packages import Callback, LightningModule, MisconfigurationException, Trainer
from lightning_reg.callbacks.trainer.settings import call_of
from lightning_reg.callbacks.trainer.sharing import Change
from lightning_reg.functional.tensors.chunks import NumberOrTensor

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
        # Lightning hangs the module's `log` on each callback in each fit, and with it the whole module.
        kept = {name: value for name, value in vars(self).items() if name not in {"log", "log_dict"}}
        return {**kept, "_run": None, "_trainer": None}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in self.stages:
            return
        other = self._trainer() if self._trainer is not None else None
        # Another one whose hooks never ran, because those of a callback before had raised, is running no more.
        if other is not None and other is not trainer and other.state.status == "running":
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
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Once for all, and when all have begun.
        callbacks = [other for other in state.callbacks_of(trainer, DuringFit) if "fit" in other.stages]
        if callbacks and self is callbacks[-1]:
            show_decays(trainer, pl_module, [other.decays(trainer, pl_module) for other in callbacks])

    def decays(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[Tensor, str]:
        """Return which weights shrink by themselves because of this callback, with words on how much."""
        return {}

    def decay_shares(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[Tensor, NumberOrTensor]:
        """Return the share of itself that the coming step takes from each of these weights."""
        return {}

    def changes(self) -> Mapping[Tensor, Change]:
        """Return which weights the callback changes right after the steps of the fit that is running, and how."""
        return {}

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        flush(trainer)  # the step before is over

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        flush(trainer)
        if stage in self.stages:
            self._end(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning calls no `teardown` then.
        flush(trainer)
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if self._trainer is None or self._trainer() is not trainer:  # the run is that of another trainer
            return
        run, self._run, self._trainer = self._run, None, None
        self.end_run(trainer, run)
