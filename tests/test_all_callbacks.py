"""Properties of every exported callback."""

import dataclasses
import inspect
import json
import math
import pickle
import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

import lightning_reg
from lightning_reg import (
    ActivityPenalty,
    Cosine,
    DropoutScheduler,
    ElasticNetPenalty,
    GroupLassoPenalty,
    KeepZeros,
    L1Penalty,
    L2Penalty,
    Linear,
    LipschitzMonitor,
    MarginPenalty,
    MaxNorm,
    MCPPenalty,
    MinMaxNorm,
    MonteCarloDropout,
    NMSparsity,
    NonNegative,
    NuclearNormPenalty,
    Piecewise,
    RegularizationMonitor,
    RegularizationPath,
    Select,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
    TargetSparsity,
    UnitNorm,
)
from tests.documented import EXPORTED, documented
from tests.event_files import scalars
from tests.models import Regressor, loader, weights_of
from tests.reference import assert_same_weights, matrices


@dataclasses.dataclass(frozen=True)
class Signs:
    """Makes classes of the targets of `tests.models`."""

    def __call__(self, batch):
        return (batch[1][:, 0] > 0).long()


# The settings that a callback can have, told apart from its defaults.
SETTINGS = {"select": Select(exclude="*.head.*"), "mode": "grad", "schedule": Cosine(1.0, 0.0, 0.5)}
CALLBACKS = [
    L1Penalty(0.1),
    L1Penalty(0.1, **SETTINGS),
    L2Penalty(0.1, **SETTINGS),
    ElasticNetPenalty(0.1, l1_ratio=0.25, **SETTINGS),
    GroupLassoPenalty(0.1, 1, **SETTINGS),
    GroupLassoPenalty(0.1, mode="proximal"),
    NuclearNormPenalty(0.1, mode="proximal"),
    TargetSparsity(L1Penalty(0.01, mode="proximal"), 0.5, schedule=Cosine(0.0, 1.0, 0.5)),
    RegularizationPath(L1Penalty(0.0, mode="proximal"), strengths=[0.2], epochs=1, direction="up"),
    ActivityPenalty(0.1, select=["network.encoder", "network.conv"], norm="l2", schedule=Cosine(1.0, 0.0, 0.5)),
    MarginPenalty(0.1, radius=0.5, target="network", label_transform=Signs(), schedule=Cosine(1.0, 0.0, 0.5)),
    RegularizationMonitor(),
    RegularizationMonitor(select="*.encoder.*", per_layer=["*.encoder.*"], histograms=True, layout=False),
    LipschitzMonitor(target="network", every_n_epochs=2, every_n_steps=3, samples=4, prog_bar=True, layout=False),
    DropoutScheduler(Linear(0.0, 0.5, 1.0), select=["*.dropout"], attribute="p", scale="depth", interval="epoch"),
    MonteCarloDropout(10, aggregate="geometric", seed=1, softmax=True, dim=-1),
    SpectralNormPenalty(0.1, norm="matrix", **SETTINGS),
    SpectralNormalization(2.0, select="*.encoder.*", norm="matrix", power_iterations=2),
    SpectralConstraint(0.5, select=["*.head.*"], method="rescale"),
    NMSparsity(2, 7, select="*.head.weight", schedule=Piecewise((0.0, 1.0), (0.5,))),
]
# Those that add to the objective what is written out below, or change nothing.
ADDING_UP = [
    callback
    for callback in CALLBACKS
    if not re.search(r"proximal|Spectral|Activity|Margin|NMSparsity|per_layer=\[", repr(callback))
]

# Any other as its docstring shows it, on all weights.
CALLBACKS += [documented(kind, select=None) for kind in EXPORTED if kind not in map(type, CALLBACKS)]

every_callback = pytest.mark.parametrize("callback", CALLBACKS, ids=repr)


@pytest.fixture
def logger(tmp_path):
    """A monitor needs one."""
    return TensorBoardLogger(tmp_path)


def arguments(callback):
    values = {name: getattr(callback, name) for name in inspect.signature(type(callback)).parameters}
    # Callbacks do not compare.
    return {name: repr(value) if isinstance(value, Callback) else value for name, value in values.items()}


@every_callback
def test_it_survives_pickling_before_and_after_training_and_takes_no_module_along(callback, fit, logger):
    class Local(Regressor):
        """Can't be pickled."""

    for _ in range(2):
        assert arguments(pickle.loads(pickle.dumps(callback))) == arguments(callback)
        fit(callback, module=Local(), max_epochs=1, logger=logger)
    assert arguments(pickle.loads(pickle.dumps(callback))) == arguments(callback)


@every_callback
def test_its_repr_makes_it_again(callback):
    again = eval(repr(callback), vars(lightning_reg) | {"Signs": Signs})

    assert type(again) is type(callback)
    assert arguments(again) == arguments(callback)


@every_callback
def test_an_exception_leaves_the_module_as_it_was(callback, fit, logger):
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
        fit(callback, module=module, logger=logger)

    assert module.network.encoder.weight.grad is not None
    torch.testing.assert_close(weights_of(module), before, rtol=1e-5 if controls_norms else 0, atol=0)
    assert [type(part) for part in module.modules()] == modules
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())


@every_callback
def test_checkpoints_load_without_this_package(callback, trainer_of, tmp_path, logger):
    trainer = trainer_of(callback, max_epochs=1, logger=logger)
    module = Regressor()
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    again = Regressor.load_from_checkpoint(tmp_path / "last.ckpt")

    torch.testing.assert_close(weights_of(again), weights_of(module), rtol=0, atol=0)


def test_all_of_them_together_add_up(fit, logger):
    actual = fit(*ADDING_UP, logger=logger)

    by_hand = Regressor()
    optimizer = by_hand.configure_optimizers()
    for step, batch in enumerate([*loader(), *loader()]):
        everything = matrices(by_hand)
        body = everything[:-1]  # without the head
        falling = (1 + math.cos(math.pi * min(step / 7, 1))) / 2
        objective = by_hand.loss(batch) + 0.1 * absolute(everything)
        objective += falling * 0.1 * (absolute(body) + squared(body) + 0.25 * absolute(body) + 0.375 * squared(body))
        norms = [weight.transpose(0, 1).flatten(1).norm(dim=1).sum() for weight in body]
        objective += falling * 0.1 * sum((w.numel() / w.shape[1]) ** 0.5 * n for w, n in zip(body, norms, strict=True))
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    assert_same_weights(actual, weights_of(by_hand))


def test_one_run_with_every_callback_at_once(fit, logger, tmp_path):
    head = {"select": "*.head.*"}
    callbacks = [
        *ADDING_UP,
        ActivityPenalty(0.01, select="network.conv"),
        MarginPenalty(0.01, radius=0.5, target="network", label_transform=Signs()),
        MCPPenalty(0.01, mode="grad"),
        # Each of the others changes weights by itself after a step, so each has its own.
        TargetSparsity(L1Penalty(0.0, mode="proximal", **head), 0.5),
        GroupLassoPenalty(0.01, mode="proximal", **head),
        RegularizationPath(L1Penalty(0.0, mode="proximal", **head), strengths=[0.02, 0.01], epochs=1),
        SpectralNormalization(2.0, select="*.encoder.*"),
        SpectralConstraint(0.5, select="*.conv.*"),
        SpectralNormPenalty(0.01, mode="grad", **head),
        NMSparsity(1, 7, **head),
        KeepZeros(0.5, **head),
        MaxNorm(0.5, **head),
        NonNegative(select="*.encoder.*"),
        UnitNorm(select=Select("*.norm.weight", min_ndim=1)),
        MinMaxNorm(0.1, 0.2, select=Select("*.norm.bias", min_ndim=1)),
    ]
    callbacks += [documented(kind, select=None) for kind in EXPORTED if kind not in map(type, callbacks)]

    fit(*callbacks, logger=logger)

    logged = scalars(tmp_path)
    logged.pop("reg/lipschitz_log10")  # -inf: all of them together make the network constant
    assert all(math.isfinite(value) for steps in logged.values() for value in steps.values())
    for tag in ("reg/penalty", "reg/sparsity", "reg/spectral_norm_max", "reg/dropout", "reg/target_sparsity/reached"):
        assert list(logged[tag]) == list(logged["train/loss"]), tag


def absolute(weights):
    return sum(weight.abs().sum() for weight in weights)


def squared(weights):
    return sum(weight.square().sum() for weight in weights)


def plain(value):
    """Return `value` as it is written in YAML."""
    if isinstance(value, Callback):
        settings = {name: plain(getattr(value, name)) for name in inspect.signature(type(value)).parameters}
        return {"class_path": f"lightning_reg.{type(value).__name__}", "init_args": settings}
    if not dataclasses.is_dataclass(value):
        return value
    settings = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    home = "lightning_reg" if hasattr(lightning_reg, type(value).__name__) else type(value).__module__
    return {"class_path": f"{home}.{type(value).__name__}", "init_args": settings}


@every_callback
def test_lightning_cli_builds_it_from_yaml(callback, callback_from_yaml):
    built = callback_from_yaml(json.dumps(plain(callback)))  # YAML as well

    assert type(built) is type(callback)
    assert arguments(built) == arguments(callback)
