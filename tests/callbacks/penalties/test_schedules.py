"""A schedule multiplies the strength, step by step, over a run whose length is known."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg import Cosine, L1Penalty, Linear
from tests.models import Regressor, Untrainable, loader, samples, weights_of
from tests.reference import (
    PENALTIES,
    assert_same_weights,
    both_modes,
    train_by_hand,
)


@both_modes
@pytest.mark.parametrize("name", ["elastic_net", "mcp"])  # of MCP, it changes the strength inside of the formula
@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        (Linear(0.0, 1.0, 10), lambda step: min(step / 10, 1.0)),
        (Cosine(1.0, 0.0, 0.5), lambda step: (1 + math.cos(math.pi * min(step / 7, 1.0))) / 2),
        (lambda step: float(step % 2), lambda step: float(step % 2)),
    ],
    ids=["ticks", "share of the run", "callable"],
)
def test_a_schedule_multiplies_the_strength(fit, mode, schedule, factor, name):
    make, term = PENALTIES[name]

    actual = fit(make(mode=mode, schedule=schedule))

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, factor=factor)))


@pytest.mark.twin
@both_modes
def test_a_share_of_the_run_under_changing_accumulation(fit, mode):
    make, term = PENALTIES["elastic_net"]
    windows = {0: 1, 1: 3}
    total = 7 + 3  # steps of the two epochs of 7 batches

    actual = fit(make(mode=mode, schedule=Linear(0.0, 1.0, 1.0)), GradientAccumulationScheduler(dict(windows)))

    by_hand = train_by_hand(
        Regressor(), loader(), term, accumulate=windows.__getitem__, factor=lambda step: step / total
    )
    assert_same_weights(actual, weights_of(by_hand))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples())


@pytest.mark.parametrize(
    "settings", [{"max_epochs": -1}, {"data": DataLoader(Stream(), batch_size=4)}], ids=["no limit", "a stream"]
)
def test_a_share_of_a_run_that_has_no_known_length_is_refused(fit, settings):
    with pytest.raises(ValueError, match="share of the run"):
        fit(L1Penalty(0.1, schedule=Linear(0.0, 1.0, 0.5)), module=Untrainable(), **settings)


def test_a_stream_with_a_limit_on_its_steps_has_a_known_length(fit):
    penalty = L1Penalty(0.1, schedule=Linear(1.0, 0.0, 0.5))

    actual = fit(penalty, data=DataLoader(Stream(), batch_size=4), max_epochs=1, max_steps=6)

    by_hand = train_by_hand(
        Regressor(),
        list(loader())[:6],
        lambda weights: 0.1 * sum(w.abs().sum() for w in weights),
        epochs=1,
        factor=lambda step: max(0.0, 1 - step / 3),
    )
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
@pytest.mark.parametrize("bad", [float("nan"), -0.5, "1", torch.tensor(1.0)])
def test_a_schedule_that_returns_nonsense_is_an_error_that_names_the_step(fit, mode, bad):
    penalty = L1Penalty(0.1, mode=mode, schedule=lambda step: 1.0 if step < 3 else bad)

    with pytest.raises((TypeError, ValueError), match=r"`schedule\(3\)` must be"):
        fit(penalty)
