"""The state of a callback during one fit: made at its start, dropped at its end, never pickled, one at a time."""

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
    """A callback with a run: its state for one trainer, module and set of optimizers.

    A subclass makes the run in `make_run` and undoes its changes in `end_run`. The run is in `_run` from `on_fit_start`
    on; hooks that a tuner calls before find None there.
    """

    regularizes: ClassVar[bool] = True
    """Whether it changes the training, so that its settings belong to the hyperparameters of the run."""

    stages: ClassVar[frozenset[str]] = frozenset({"fit"})
    """The stage for which it has a run."""

    def __init__(self) -> None:
        super().__init__()
        self._run: RunT | None = None
        self._trainer: weakref.ref[Trainer] | None = None
        """The trainer of the run."""

    @property
    def run(self) -> RunT | None:
        """The state of the callback during a fit; None outside a fit."""
        return self._run

    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> RunT | None:
        """Return the state for the fit that starts."""
        raise NotImplementedError

    def end_run(self, trainer: Trainer, run: RunT | None) -> None:
        """Undo the changes of the run; without a run, undo the changes of `setup`."""

    @override
    def __repr__(self) -> str:
        return call_of(self)

    @override
    def __getstate__(self) -> dict[str, Any]:
        # Lightning pickles the trainer with its callbacks during training if a data loader spawns workers and its
        # `collate_fn` is a method of the data module. A run holds hooks and optimizers, which cannot be pickled.
        # Lightning attaches the module's `log` to each callback in each fit, and with it the whole module.
        kept = {name: value for name, value in vars(self).items() if name not in {"log", "log_dict"}}
        return {**kept, "_run": None, "_trainer": None}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in self.stages:
            return
        other = self._trainer() if self._trainer is not None else None
        # Another trainer is not running if its hooks never ran because an earlier callback had raised.
        if other is not None and other is not trainer and other.state.status == "running":
            msg = (
                f"{self!r} is in another Trainer that is running, and its state for that run would be lost."
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
        # Once for all callbacks, after all have started.
        callbacks = [other for other in state.callbacks_of(trainer, DuringFit) if "fit" in other.stages]
        if callbacks and self is callbacks[-1]:
            show_decays(trainer, pl_module, [other.decays(trainer, pl_module) for other in callbacks])

    def decays(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[Tensor, str]:
        """Return the weights that this callback decays, each with a description."""
        return {}

    def decay_shares(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[Tensor, NumberOrTensor]:
        """Return the share that decay takes from each weight in the coming step."""
        return {}

    def changes(self) -> Mapping[Tensor, Change]:
        """Return the weights that the callback changes right after the steps of the current fit, and how."""
        return {}

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        flush(trainer)  # the last step is over

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        flush(trainer)
        if stage in self.stages:
            self._end(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # After an exception, Lightning does not call `teardown`.
        flush(trainer)
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if self._trainer is None or self._trainer() is not trainer:  # the run belongs to another trainer
            return
        run, self._run, self._trainer = self._run, None, None
        self.end_run(trainer, run)
