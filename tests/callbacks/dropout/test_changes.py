"""A model that the user's own code changes while it trains: what is logged is what acts."""

import pytest
import torch
from torch import nn

from lightning_reg import Constant, DropoutScheduler, Linear
from tests.callbacks.dropout.modules import DropPath
from tests.models import Regressor, loader


class Module(Regressor):
    """Calls `change` before the batch of that number, and keeps the rates that act."""

    def __init__(self, change=None, at: int = 3) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.change, self.at = change, at
        self.seen, self.logged = [], []

    def on_train_batch_start(self, batch, batch_idx):
        if len(self.seen) == self.at and self.change:
            self.change(self)

    def training_step(self, batch, batch_idx):
        parts = [part for part in self.modules() if isinstance(part, (nn.Dropout, DropPath))]
        self.seen.append([part.p if isinstance(part, nn.Dropout) else part.drop_prob for part in parts])
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.logged.append(self.trainer.callback_metrics["reg/dropout"].item())


def set_rate(module):
    module.network[1].p = 0.9


def test_a_rate_that_other_code_sets_acts_and_is_logged_for_that_step_then_the_schedule_is_back(trainer_of):
    module = Module(set_rate)

    # The callbacks' hooks run before the module's hook, which has the last word in one step.
    with pytest.warns(
        UserWarning, match=r"set the dropout rate of 'network\.1' to 0\.9, .*\(0\.2 in the last one\)"
    ) as w:
        trainer_of(DropoutScheduler(Constant(0.2)), max_epochs=1).fit(module, loader())

    assert sum("Other code" in str(item.message) for item in w) == 1
    assert module.seen == [[0.2], [0.2], [0.2], [0.9], [0.2], [0.2], [0.2]]
    assert module.logged == pytest.approx([rate for (rate,) in module.seen])
    assert module.network[1].p == 0.5


@pytest.mark.parametrize(
    "replace",
    [
        lambda module: setattr(module.network, "1", nn.Dropout(0.3)),
        lambda module: module.network.__setitem__(1, nn.Sequential(nn.Dropout(0.3))),
        lambda module: setattr(module, "network", nn.Sequential(nn.Linear(5, 2), nn.Dropout(0.3))),
    ],
    ids=["module", "module by a nested one", "whole network"],
)
def test_a_module_that_was_replaced_is_found(trainer_of, replace):
    module = Module(replace)
    (old,) = [part for part in module.modules() if isinstance(part, nn.Dropout)]

    trainer_of(DropoutScheduler(Linear(0.0, 0.7, 7)), max_epochs=1).fit(module, loader())

    (new,) = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    # It has the rate that it was built with until the next batch begins.
    assert module.seen == [pytest.approx([0.3 if tick == 3 else 0.1 * tick]) for tick in range(7)]
    assert module.logged[4:] == pytest.approx([0.4, 0.5, 0.6])
    assert (old.p, new.p) == (0.5, 0.3)
    assert "forward" not in vars(old)
    assert "forward" not in vars(new)


def test_a_module_that_slips_in_is_found_when_the_next_epoch_begins(trainer_of):
    def slip_in(module):
        module.network._modules["1"] = nn.Dropout(0.4)  # as `nn.Sequential.insert` does: no hook of torch's sees it

    module = Module(slip_in, at=4)
    module.network.append(DropPath(0.1))
    schedulers = [
        DropoutScheduler(Constant(0.2), select="network.1"),
        DropoutScheduler(Constant(0.7), select="network.3"),
    ]

    trainer_of(*schedulers, max_epochs=2).fit(module, loader())

    assert module.seen == [[0.2, 0.7]] * 4 + [[0.4, 0.7]] * 3 + [[0.2, 0.7]] * 7
    assert module.network[1].p == 0.4
    assert module.network[3].drop_prob == 0.1


def test_removed_dropout_warns_once_and_training_goes_on(trainer_of):
    def remove(module):
        module.network[1] = nn.Identity()

    module = Module(remove)

    with pytest.warns(UserWarning, match="no longer finds a rate to set") as warnings:
        trainer_of(DropoutScheduler(Constant(0.2)), max_epochs=2).fit(module, loader())

    assert sum("no longer finds" in str(item.message) for item in warnings) == 1
    assert module.seen == [[0.2]] * 3 + [[]] * 11


def test_a_compiled_model_takes_the_schedule_after_a_replacement_too(trainer_of):
    torch._dynamo.reset()

    def replace(module):
        module.network[1] = nn.Dropout(0.3)

    class Shares(Module):
        def training_step(self, batch, batch_idx):
            self.shares.append((self.compiled(torch.ones(20_000)) == 0).float().mean().item())
            return super().training_step(batch, batch_idx)

    module = Shares(replace, at=2)
    module.shares = []
    module.compiled = torch.compile(lambda inputs: module.network[1](inputs), backend="aot_eager")

    trainer_of(DropoutScheduler(Linear(0.0, 0.7, 7)), max_epochs=1).fit(module, loader())

    assert module.shares == pytest.approx([0.0, 0.1, 0.3, 0.3, 0.4, 0.5, 0.6], abs=0.02)
