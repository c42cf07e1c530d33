"""Shares of a run need its length: an unknown length is an error with a remedy, a changed length is a warning."""

import math
import re

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg import DropoutScheduler, L1Penalty, Linear, Piecewise, TargetSparsity, WeightDecay
from tests.models import Gan, Regressor, Untrainable, loader, samples, weights_of
from tests.reference import add_term_gradient, assert_same_weights, matrices

SHARE = Linear(0.0, 0.5, 1.0)
CALLBACKS = {
    "penalty": lambda schedule: L1Penalty(0.1, schedule=schedule),
    "target": lambda schedule: TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=schedule),
    "dropout": DropoutScheduler,
    "decay": lambda schedule: WeightDecay(0.1, schedule=schedule),
}
every_callback = pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples())


def stream():
    return DataLoader(Stream(), batch_size=4)


@every_callback
@pytest.mark.parametrize(
    ("data", "settings", "remedies"),
    [
        (stream, {"max_epochs": 2}, {"limit_train_batches", "max_steps"}),
        (stream, {"max_epochs": -1}, {"max_epochs", "limit_train_batches", "max_steps"}),
        (stream, {"max_epochs": -1, "limit_train_batches": 3}, {"max_epochs", "max_steps"}),
        (loader, {"max_epochs": -1}, {"max_epochs", "max_steps"}),
    ],
)
def test_the_remedies_for_an_unknown_length_are_the_missing_settings(fit, make, data, settings, remedies):
    with pytest.raises(ValueError, match=r"Give the duration as an int \(ticks\), or set `") as error:
        fit(make(SHARE), module=Untrainable(sgd), data=data(), **settings)

    assert set(re.findall(r"`(\w+)`", str(error.value))) == remedies


@every_callback
@pytest.mark.parametrize("remedy", [{"limit_train_batches": 3}, {"max_steps": 6}], ids=str)
def test_each_remedy_for_a_stream_helps(fit, make, remedy):
    fit(make(SHARE), module=Regressor(sgd), data=stream(), max_epochs=2, **remedy)


@pytest.mark.parametrize(
    ("data", "settings", "remedies"),
    [
        (stream, {"max_epochs": 2}, {"limit_train_batches"}),
        (loader, {"max_steps": 5}, {"max_epochs", "max_steps"}),
    ],
)
def test_in_manual_optimization_max_steps_is_not_a_remedy(trainer_of, data, settings, remedies):
    with pytest.raises(ValueError, match="no known length") as error:
        trainer_of(L1Penalty(0.1, mode="grad", schedule=SHARE), **({"max_epochs": None} | settings)).fit(Gan(), data())

    assert set(re.findall(r"`(\w+)`", str(error.value))) == remedies
    assert ("no `max_steps`, which counts the steps of all" in str(error.value)) == ("max_steps" in settings)


def test_a_scheduler_by_epochs_needs_epochs_alone(fit):
    with pytest.raises(ValueError, match=r"or set `max_epochs`\.$"):
        fit(DropoutScheduler(SHARE, interval="epoch"), module=Untrainable(), data=stream(), max_epochs=-1, max_steps=9)


class Growing(Regressor):
    """Has seven batches more in each epoch."""

    def train_dataloader(self):
        return loader(28 * (self.trainer.current_epoch + 1))


GROWS = {"reload_dataloaders_every_n_epochs": 1}


def fit_to_own_data(trainer_of, callback, module, **settings):
    trainer_of(callback, **settings).fit(module)
    return weights_of(module)


@every_callback
def test_growing_data_warn(trainer_of, make):
    with pytest.warns(UserWarning, match=r"14 batches now and had 7 before.*shares of a run of 14 ticks.*not of 28\."):
        fit_to_own_data(trainer_of, make(SHARE), Growing(sgd), **GROWS)


@pytest.mark.filterwarnings("ignore:An epoch has")
def test_shares_keep_the_length_at_the_start(trainer_of):
    actual = fit_to_own_data(trainer_of, L1Penalty(0.1, schedule=SHARE), Growing(sgd), **GROWS)

    by_hand = Regressor(sgd)
    optimizer = by_hand.configure_optimizers()
    for step, batch in enumerate([*loader(), *loader(56)]):
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        factor = 0.1 * 0.5 * min(step / 14, 1.0)
        add_term_gradient(lambda weights: sum(w.abs().sum() for w in weights), matrices(by_hand), factor)
        optimizer.step()
    assert_same_weights(actual, weights_of(by_hand))


@every_callback
@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (Linear(0.0, 0.5, 20), {}),
        (Piecewise((0.0, 0.5), (3,)), {}),
        (lambda tick: 0.5 * math.exp(-tick), {}),
        (SHARE, {"max_steps": 9}),
        (SHARE, {"limit_train_batches": 5}),
    ],
    ids=["ticks", "pieces", "callable", "steps", "batches"],
)
def test_growing_data_without_effect_do_not_warn(trainer_of, make, schedule, settings):
    fit_to_own_data(trainer_of, make(schedule), Growing(sgd), **GROWS, **settings)  # warnings are errors


def test_growing_data_do_not_warn_if_a_tick_is_an_epoch(trainer_of):
    fit_to_own_data(trainer_of, DropoutScheduler(SHARE, interval="epoch"), Growing(sgd), **GROWS)
