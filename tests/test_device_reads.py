"""In a step that logs nothing, no callback reads the value of a tensor: on a GPU, that would wait for the device."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_reg import GroupLassoPenalty, L1Penalty, RegularizationPath, TargetSparsity
from tests.models import Regressor, loader
from tests.test_all_callbacks import CALLBACKS

# Operations whose result, or its shape, only the device knows.
READS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim", "_unique2"}
# These do nothing in a training step, or are all about what the network returns.
ADAM = {
    "group lasso": lambda: GroupLassoPenalty(0.01, mode="proximal"),
    "target sparsity of groups": lambda: TargetSparsity(GroupLassoPenalty(0.01, mode="proximal"), 0.5),
    "target sparsity": lambda: TargetSparsity(L1Penalty(0.01, mode="proximal"), 0.5),
}


class Reads(TorchDispatchMode):
    """Notes reads of values, but for the counters of steps, which optimizers keep on the CPU to read them."""

    def __init__(self, optimizers):
        super().__init__()
        self.counters = [state.get("step") for own in optimizers for state in own.state.values()]
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS and not any(args[0] is counter for counter in self.counters):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class First(Callback):
    """Begins to look before all others, in one step in the middle of an epoch."""

    def __init__(self, batch):
        self.batch, self.reads = batch, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == self.batch:
            self.reads = Reads(trainer.optimizers)
            self.reads.__enter__()


class Last(Callback):
    """Ends after all others."""

    def __init__(self, first):
        self.first = first

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == self.first.batch:
            self.first.reads.__exit__(None, None, None)


def reads_of(trainer_of, tmp_path, *callbacks, optimizer=None):
    first = First(batch=3)
    logger = CSVLogger(tmp_path)
    # Of batches 0 to 6 of the second epoch, batch 5 is the 13th step, which logs.
    trainer = trainer_of(
        first, *callbacks, Last(first), max_epochs=2, logger=logger, log_every_n_steps=13, num_sanity_val_steps=0
    )
    trainer.fit(Regressor(optimizer) if optimizer else Regressor(), loader())
    return first.reads.found


# The steps that are looked at are those of the second epoch, and this one ends the fit itself.
LONG_ENOUGH = [
    RegularizationPath(each.penalty, strengths=[0.2], epochs=2) if isinstance(each, RegularizationPath) else each
    for each in CALLBACKS
]


@pytest.mark.parametrize("callback", LONG_ENOUGH, ids=repr)
def test_no_callback_reads_a_value_in_a_step_that_logs_nothing(callback, trainer_of, tmp_path):
    assert reads_of(trainer_of, tmp_path, callback) == []


@pytest.mark.parametrize("make", ADAM.values(), ids=ADAM)
def test_nor_does_the_proximal_step_of_groups_with_the_step_sizes_of_adam(make, trainer_of, tmp_path):
    def optimizer(parameters):
        return torch.optim.Adam(parameters, lr=0.01)

    assert reads_of(trainer_of, tmp_path, make(), optimizer=optimizer) == []


def test_a_callback_that_reads_is_found(trainer_of, tmp_path):
    class Reading(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.network.head.weight.norm().item()

    assert reads_of(trainer_of, tmp_path, Reading()) == ["_local_scalar_dense"]
