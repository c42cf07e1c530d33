"""What holds for every callback that is exported."""

import dataclasses
import inspect
import json
import math
import pickle

import pytest
import torch
from lightning.pytorch import Callback

import lightning_reg
from lightning_reg import (
    Cosine,
    ElasticNetPenalty,
    L1Penalty,
    L2Penalty,
    Select,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
)
from tests.models import Regressor, loader, weights_of
from tests.reference import assert_same_weights, matrices

SETTINGS = {"select": Select(exclude="*.head.*"), "mode": "grad", "schedule": Cosine(1.0, 0.0, 0.5)}
CALLBACKS = [
    L1Penalty(0.1),
    L1Penalty(0.1, **SETTINGS),
    L2Penalty(0.1, **SETTINGS),
    ElasticNetPenalty(0.1, l1_ratio=0.25, **SETTINGS),
    SpectralNormPenalty(0.1, norm="matrix", **SETTINGS),
    SpectralNormalization(2.0, select="*.encoder.*", norm="matrix", power_iterations=2),
    SpectralConstraint(0.5, select=["*.head.*"], method="rescale"),
]
ADDING_UP = CALLBACKS[:4]

every_callback = pytest.mark.parametrize("callback", CALLBACKS, ids=repr)


def arguments(callback):
    return {name: getattr(callback, name) for name in inspect.signature(type(callback)).parameters}


def test_every_exported_callback_is_here():
    exported = {
        item
        for name in lightning_reg.__all__
        if inspect.isclass(item := getattr(lightning_reg, name)) and issubclass(item, Callback)
    }

    assert {type(callback) for callback in CALLBACKS} == {item for item in exported if not inspect.isabstract(item)}


@every_callback
def test_it_survives_pickling_before_and_after_training(callback, fit):
    for _ in range(2):
        assert arguments(pickle.loads(pickle.dumps(callback))) == arguments(callback)
        fit(callback, max_epochs=1)


@every_callback
def test_its_repr_makes_it_again(callback):
    again = eval(repr(callback), vars(lightning_reg))

    assert type(again) is type(callback)
    assert arguments(again) == arguments(callback)


@every_callback
def test_an_exception_leaves_the_module_as_it_was(callback, fit):
    class Failing(Regressor):
        def on_before_optimizer_step(self, optimizer):  # every callback has acted by now
            raise ZeroDivisionError

    module = Failing()
    controls_norms = isinstance(callback, (SpectralConstraint, SpectralNormalization))
    if controls_norms:  # from the start of `fit` on
        with pytest.raises(ZeroDivisionError):
            fit(callback, module=module)
    before, modules = weights_of(module), [type(part) for part in module.modules()]

    with pytest.raises(ZeroDivisionError):
        fit(callback, module=module)

    assert module.network.encoder.weight.grad is not None
    torch.testing.assert_close(weights_of(module), before, rtol=1e-5 if controls_norms else 0, atol=0)
    assert [type(part) for part in module.modules()] == modules
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())


@every_callback
def test_checkpoints_load_without_this_package(callback, trainer_of, tmp_path):
    trainer = trainer_of(callback, max_epochs=1)
    module = Regressor()
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    again = Regressor.load_from_checkpoint(tmp_path / "last.ckpt")

    torch.testing.assert_close(weights_of(again), weights_of(module), rtol=0, atol=0)


def test_all_of_them_together_add_up(fit):
    actual = fit(*ADDING_UP)

    by_hand = Regressor()
    optimizer = by_hand.configure_optimizers()
    for step, batch in enumerate([*loader(), *loader()]):
        everything = matrices(by_hand)
        body = everything[:-1]  # without the head
        falling = (1 + math.cos(math.pi * min(step / 7, 1))) / 2
        objective = by_hand.loss(batch) + 0.1 * absolute(everything)
        objective += falling * 0.1 * (absolute(body) + squared(body) + 0.25 * absolute(body) + 0.375 * squared(body))
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    assert_same_weights(actual, weights_of(by_hand))


def absolute(weights):
    return sum(weight.abs().sum() for weight in weights)


def squared(weights):
    return sum(weight.square().sum() for weight in weights)


def plain(value):
    """Return `value` as it is written in YAML."""
    if not dataclasses.is_dataclass(value):
        return value
    settings = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"class_path": f"lightning_reg.{type(value).__name__}", "init_args": settings}


@every_callback
def test_lightning_cli_builds_it_from_yaml(callback, callback_from_yaml):
    settings = {name: plain(value) for name, value in arguments(callback).items()}
    text = json.dumps({"class_path": f"lightning_reg.{type(callback).__name__}", "init_args": settings})  # YAML as well

    built = callback_from_yaml(text)

    assert type(built) is type(callback)
    assert arguments(built) == arguments(callback)
