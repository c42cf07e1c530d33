"""Penalties keep their promise in every precision: with loss scaling, under autocast, with short and long weights."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from tests.models import Regressor, loader, weights_of
from tests.reference import PENALTIES, assert_same_weights, both_modes, every_penalty, train_by_hand


@both_modes
@every_penalty
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("scale", [1024.0, 65536.0])
def test_fp16_with_a_gradient_scaler(fit, name, mode, accumulate, scale):
    make, term = PENALTIES[name]
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))

    actual = fit(make(mode=mode), plugins=[plugin], accumulate_grad_batches=accumulate)

    by_hand = train_by_hand(
        Regressor(),
        loader(),
        term,
        accumulate=lambda epoch: accumulate,
        scaler=torch.amp.GradScaler("cpu", init_scale=scale),
        autocast=torch.float16,
    )
    assert_same_weights(actual, weights_of(by_hand))


class Overflowing(Regressor):
    """Every third batch has a loss whose gradient overflows."""

    def loss(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return super().loss(batch) * (1e38 if self.calls % 3 == 0 else 1.0)


@both_modes
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips(fit, mode, fused):
    make, term = PENALTIES["elastic_net"]

    def optimizer(parameters):
        return torch.optim.Adam(parameters, lr=0.01, fused=fused)

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    ours = scaler()
    actual = fit(
        make(mode=mode), module=Overflowing(optimizer), plugins=[MixedPrecision("16-mixed", "cpu", scaler=ours)]
    )

    theirs = scaler()
    by_hand = train_by_hand(
        # `unscale_` by hand is not for fused optimizers, which unscale in `step`; they compute the same.
        Overflowing(lambda parameters: torch.optim.Adam(parameters, lr=0.01)),
        loader(),
        term,
        scaler=theirs,
        autocast=torch.float16,
    )
    assert_same_weights(actual, weights_of(by_hand), rtol=2e-6 if fused else 1e-6)
    assert ours.get_scale() == theirs.get_scale() != 1024.0


@both_modes
@every_penalty
def test_bf16_mixed_precision(fit, name, mode):
    make, term = PENALTIES[name]

    actual = fit(make(mode=mode), precision="bf16-mixed")

    assert_same_weights(actual, weights_of(train_by_hand(Regressor(), loader(), term, autocast=torch.bfloat16)))


@both_modes
@every_penalty
def test_double_precision(fit, name, mode):
    make, term = PENALTIES[name]
    data = loader(dtype=torch.float64)

    actual = fit(make(mode=mode), data=data, precision="64-true")

    assert_same_weights(actual, weights_of(train_by_hand(Regressor().double(), data, term)), rtol=1e-14)


@both_modes
@every_penalty
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
def test_weights_of_half_precision(fit, name, mode, precision, dtype):
    make, term = PENALTIES[name]
    data = loader(dtype=dtype)

    actual = fit(make(mode=mode), data=data, precision=precision)

    by_hand = train_by_hand(Regressor().to(dtype), data, term)
    assert_same_weights(actual, weights_of(by_hand), rtol=4 * torch.finfo(dtype).eps)
