"""The one promise: every optimizer step minimises mean data loss + penalty, with any accumulation and precision."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty, Penalty, Select
from tests.models import Quartic, Regressor, loader, weights_of
from tests.reference import (
    PENALTIES,
    add_term_gradient,
    assert_same_weights,
    both_modes,
    every_penalty,
    matrices,
    train_by_hand,
)

OPTIMIZERS = {
    "sgd with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


@both_modes
@every_penalty
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:.*both shrink the same weights")
def test_plain_training(fit, name, mode, optimizer):
    make, term = PENALTIES[name]

    actual = fit(make(mode=mode), module=Regressor(OPTIMIZERS[optimizer]))

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(OPTIMIZERS[optimizer]), loader(), term)))


@both_modes
@every_penalty
def test_an_optimizer_that_evaluates_its_closure_many_times(fit, name, mode):
    make, term = PENALTIES[name]
    # One batch, small steps and float64: LBFGS blows up rounding.
    data = loader(28, batch_size=28, dtype=torch.float64)

    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=5)

    by_hand = Regressor(lbfgs).double()
    optimizer = by_hand.configure_optimizers()
    for batch in [*data, *data]:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = by_hand.loss(batch)
            loss.backward()
            add_term_gradient(term, matrices(by_hand), 1.0)
            return loss + term(matrices(by_hand))

        optimizer.step(closure)

    actual = fit(make(mode=mode), module=Regressor(lbfgs), data=data, precision="64-true")

    assert_same_weights(actual, weights_of(by_hand))


def test_both_modes_agree_where_lightning_itself_adds_up_too_much(fit):
    # Within a step that closes a window, LBFGS evaluates several times, and Lightning zeroes no gradient in between.
    results = [
        fit(
            L2Penalty(0.1, mode=mode),
            module=Regressor(lambda parameters: torch.optim.LBFGS(parameters, lr=0.01, max_iter=3)),
            data=loader(dtype=torch.float64),
            precision="64-true",
            accumulate_grad_batches=2,
        )
        for mode in ("loss", "grad")
    ]

    assert_same_weights(*results)


@both_modes
@every_penalty
@pytest.mark.parametrize(("batches", "last_window"), [(8, 4), (5, 1), (6, 2), (7, 3)])
def test_accumulation_with_a_short_last_window(fit, name, mode, batches, last_window):
    make, term = PENALTIES[name]
    data = loader(4 * batches)
    assert (batches - 1) % 4 + 1 == last_window

    actual = fit(make(mode=mode), data=data, accumulate_grad_batches=4)

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), data, term, accumulate=lambda epoch: 4)))


@both_modes
@every_penalty
def test_accumulation_that_changes_between_epochs(fit, name, mode):
    make, term = PENALTIES[name]
    windows = {0: 1, 1: 2, 2: 4}

    actual = fit(make(mode=mode), GradientAccumulationScheduler(dict(windows)), max_epochs=3)

    by_hand = train_by_hand(Regressor(), loader(), term, epochs=3, accumulate=windows.__getitem__)
    assert_same_weights(actual, weights_of(by_hand))


@both_modes
@every_penalty
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_acts_on_the_regularized_gradient(fit, name, mode, algorithm):
    make, term = PENALTIES[name]
    clip = {
        "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1),
        "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01),
    }[algorithm]
    value = {"norm": 0.1, "value": 0.01}[algorithm]

    actual = fit(make(mode=mode), gradient_clip_val=value, gradient_clip_algorithm=algorithm)

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, clip=clip)))


@both_modes
def test_l1_and_l2_together_are_the_elastic_net(fit, mode):
    separate = fit(L1Penalty(0.05 * 0.3, mode=mode), L2Penalty(0.05 * 0.35, mode=mode))

    assert_same_weights(separate, fit(ElasticNetPenalty(0.05, 0.3, mode=mode)))


@both_modes
def test_two_penalties_of_one_class_on_different_parts(fit, mode):
    penalties = [
        L2Penalty(0.1, select="network.encoder.*", mode=mode),
        L2Penalty(0.01, select=Select(exclude="network.encoder.*"), mode=mode),
    ]

    def term(weights):
        encoder, *others = weights
        return 0.1 * encoder.square().sum() + 0.01 * sum(weight.square().sum() for weight in others)

    assert_same_weights(fit(*penalties), weights_of(train_by_hand(Regressor(), loader(), term)))


@pytest.mark.parametrize("modes", [("loss", "loss"), ("grad", "grad"), ("loss", "grad"), ("grad", "loss")])
def test_the_same_weight_in_two_penalties_adds_up(fit, modes):
    twice = fit(*(L1Penalty(0.01, mode=mode) for mode in modes))

    assert_same_weights(twice, fit(L1Penalty(0.02)))


@both_modes
def test_a_penalty_of_the_users_own(fit, mode):
    actual = fit(Quartic(0.1, mode=mode), accumulate_grad_batches=3)

    def term(weights):
        return 0.1 * sum(weight.pow(4).sum() for weight in weights)

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, accumulate=lambda epoch: 3)))


@both_modes
def test_a_penalty_that_does_not_depend_on_the_weights_changes_nothing_but_says_so(fit, mode):
    class One(Penalty):
        def penalty(self, weights):
            return torch.tensor(1.0)

    with pytest.warns(UserWarning, match="One.penalty` returned a value without gradient"):
        actual = fit(One(0.1, mode=mode))

    assert_same_weights(actual, fit(), rtol=0.0)


class LossReader(Callback):
    """Keeps each loss as backward will see it, and what it should be."""

    def __init__(self, term):
        self.term, self.found, self.expected = term, [], []

    def on_before_backward(self, trainer, pl_module, loss):
        objective = pl_module.data_loss + self.term(matrices(pl_module)).item()
        self.found.append(loss.item())
        self.expected.append(objective / trainer.accumulate_grad_batches)


@every_penalty
@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_loss_that_is_differentiated_holds_the_value_of_the_penalty(fit, name, scale, accumulate):
    class Remembering(Regressor):
        def loss(self, batch):
            loss = super().loss(batch)
            self.data_loss = loss.item()
            return loss

    make, term = PENALTIES[name]
    reader = LossReader(term)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)] if scale != 1.0 else None

    fit(make(), reader, module=Remembering(), plugins=plugins, accumulate_grad_batches=accumulate)

    assert len(reader.found) == 14
    assert reader.found == pytest.approx([scale * value for value in reader.expected], rel=1e-5)
