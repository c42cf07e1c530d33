"""Hooks around the update of an optimizer: once for each step, whatever the optimizer's class does in it."""

import pytest
import torch
from torch import nn

from lightning_reg import MinMaxNorm, SpectralNormalization, WeightDecay
from lightning_reg.callbacks.trainer.step_hooks import AroundSteps
from tests.callbacks.decay.test_weight_decay import split
from tests.callbacks.spectral.norms import train_normalized
from tests.models import Regressor, loader, weights_of
from tests.reference import assert_same_weights


class Nested(torch.optim.SGD):
    """Has a step of its own around the one of its base class."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.fixture(autouse=True)
def _hooked_base_class():
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)  # torch calls hooks in a class once it has made an instance


def nested(parameters):
    return Nested(parameters, lr=0.05)


@pytest.mark.parametrize("closure", [None, lambda: None])
def test_a_step_of_a_base_class_within_a_step_is_no_step_of_its_own(closure):
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer, seen = nested([weight]), []
    steps = AroundSteps(lambda *_: seen.append(weight.item()), lambda _: seen.append(weight.item()))
    only_after = AroundSteps(lambda *_: seen.append("after"))
    steps.add([optimizer])
    only_after.add([optimizer])

    optimizer.step(closure)
    optimizer.step(closure)

    assert seen == pytest.approx([1.0, 0.95, "after", 0.95, 0.9, "after"])


def test_a_step_that_failed_does_not_count_as_running_forever():
    weight = nn.Parameter(torch.ones(1))
    optimizer, seen = nested([weight]), []
    steps = AroundSteps(lambda *_: seen.append("after"), lambda _: seen.append("before"))
    steps.add([optimizer])
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)

    steps.rest()
    optimizer.step()

    assert seen == ["before", "after"]


def test_normalization_trains_as_the_loop_does(fit):
    actual = fit(
        SpectralNormalization(2.5, norm="matrix"),
        module=Regressor(nested).double(),
        data=loader(dtype=torch.float64),
    )
    expected = train_normalized(Regressor(nested).double(), loader(dtype=torch.float64), kind="matrix", bound=2.5)

    assert_same_weights(actual, expected, rtol=1e-8)


def test_decay_decays_once(fit):
    actual = fit(WeightDecay(0.5), module=Regressor(nested))

    # The decay of SGD without momentum is decoupled.
    by_sgd = Regressor(lambda parameters: torch.optim.SGD(split(parameters, 0.5), lr=0.05))
    assert_same_weights(actual, fit(module=by_sgd))


def test_a_constraint_that_goes_a_part_of_the_way_goes_it_once(fit):
    class Still(Regressor):
        def loss(self, batch):
            return 0 * super().loss(batch)

    before = weights_of(Still())["network.head.weight"].norm(dim=1)
    after = fit(MinMaxNorm(0.0, 0.1, rate=0.5), module=Still(nested), max_steps=1)["network.head.weight"].norm(dim=1)

    assert before.min() > 0.1
    torch.testing.assert_close(after, (before + 0.1) / 2)
