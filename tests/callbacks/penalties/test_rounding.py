"""In half precision a proximal step can be too small to be seen: the weight stays, and the user is told."""

import warnings

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_reg import Constant, GroupLassoPenalty, L1Penalty, L2Penalty, Linear, TargetSparsity
from tests.models import Gan, Regressor, loader, weights_of

RATE = 0.01


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


class Still(Regressor):
    """Weights of 0.5, without a gradient of the data: the penalty alone acts."""

    def __init__(self):
        super().__init__(sgd)
        for weight in self.parameters():
            nn.init.constant_(weight, 0.5)

    def loss(self, batch):
        return 0.0 * super().loss(batch)


def fit_in(fit, dtype, callback, **settings):
    precision = {torch.bfloat16: "bf16-true", torch.float16: "16-true"}[dtype]
    return fit(callback, module=Still(), data=loader(dtype=dtype), precision=precision, **settings)


def half_a_unit(dtype):
    """Return half the distance from 0.5 to the next number below: between 0.25 and 0.5 numbers are eps / 4 apart."""
    return torch.finfo(dtype).eps / 8


both_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@both_dtypes
def test_a_step_below_half_a_unit_warns_with_the_remedy(fit, dtype):
    strength = 0.9 * half_a_unit(dtype) / RATE
    name = str(dtype).removeprefix("torch.")

    with pytest.warns(UserWarning, match=rf"L1Penalty .*rounding to {name} puts 86 of them back.*bf16-mixed"):
        weights = fit_in(fit, dtype, L1Penalty(strength, mode="proximal"))

    assert all((weight == 0.5).all() for weight in weights.values())


@both_dtypes
def test_a_step_above_half_a_unit_moves_weights_and_does_not_warn(fit, dtype):
    strength = 1.1 * half_a_unit(dtype) / RATE

    weights = fit_in(fit, dtype, L1Penalty(strength, mode="proximal"))  # warnings are errors

    assert (weights["network.head.weight"] < 0.5).all()


@pytest.mark.parametrize("penalty", [GroupLassoPenalty(1e-4, mode="proximal"), L2Penalty(1e-4, mode="proximal")])
def test_operators_that_shrink_by_a_share_are_looked_at_as_well(fit, penalty):
    with pytest.warns(UserWarning, match=f"{type(penalty).__name__} .*rounding to bfloat16"):
        fit_in(fit, torch.bfloat16, penalty)


def test_the_strongest_step_of_a_schedule_counts(fit):
    strength = 20 * half_a_unit(torch.bfloat16) / RATE

    fit_in(fit, torch.bfloat16, L1Penalty(strength, mode="proximal", schedule=Linear(0.0, 1.0)))
    fit_in(fit, torch.bfloat16, L1Penalty(strength, mode="proximal", schedule=Linear(1.0, 0.0)))
    with pytest.warns(UserWarning, match="rounding to bfloat16"):
        fit_in(fit, torch.bfloat16, L1Penalty(strength, mode="proximal", schedule=Constant(0.04)))


def test_it_warns_once(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_in(fit, torch.bfloat16, L1Penalty(1e-3, mode="proximal"), max_epochs=4)

    assert sum("rounding to bfloat16" in str(warning.message) for warning in caught) == 1


def test_weights_in_float32_and_targets_of_zeros_do_not_warn(fit):
    fit(L1Penalty(1e-7, mode="proximal"), module=Still())
    fit(L1Penalty(1e-7, mode="proximal"), module=Still(), precision="bf16-mixed")
    fit_in(fit, torch.bfloat16, TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0)))


def test_manual_optimization_is_looked_at_although_its_gradients_are_gone(trainer_of):
    class Clearing(Gan):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.zero_grad()

    module = Clearing()
    for weight in module.parameters():
        nn.init.constant_(weight, 0.5)
    trainer = trainer_of(L1Penalty(1e-5, mode="proximal", select="critic.*"), precision="bf16-true")

    with pytest.warns(UserWarning, match="rounding to bfloat16"):
        trainer.fit(module, loader(dtype=torch.bfloat16))
    assert weights_of(module)["critic.0.weight"].dtype == torch.bfloat16


@both_dtypes
def test_units_are_the_layers_units_in_any_layout(trainer_of, dtype):
    class Alone(Still):
        def __init__(self):
            super().__init__()
            self.network = Conv1D(9, 4)
            nn.init.constant_(self.network.weight, 0.5)
            with torch.no_grad():
                self.network.weight[0] = 0  # one of the four inputs of each unit

        def loss(self, batch):
            return 0.0 * self.network.weight.sum()

    module, settings = Alone(), {"precision": {torch.bfloat16: "bf16-true", torch.float16: "16-true"}[dtype]}
    # Of a unit of four entries, three of which are 0.5, each moves 4**0.5 / 3**0.5 times as far as one of nine alike.
    strength = 0.95 * half_a_unit(dtype) / RATE

    trainer_of(GroupLassoPenalty(strength, mode="proximal"), max_steps=1, **settings).fit(module, loader(dtype=dtype))

    assert (module.network.weight[1:] < 0.5).all()  # and no warning, which would be an error
