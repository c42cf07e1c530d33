"""How far steps move weights, against copies by hand."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision

from lightning_reg import L1Penalty, RegularizationMonitor, Select, SpectralNormalization, WeightDecay
from tests.event_files import scalars
from tests.models import Gan, Regressor, loader, weights_of


class Copies(Callback):
    """Keeps the weights before each batch and after the last one."""

    def __init__(self):
        self.weights = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.weights.append(weights_of(pl_module))

    def on_train_end(self, trainer, pl_module):
        self.weights.append(weights_of(pl_module))

    def ratios(self, name, window=1):
        """Return the ratio of each optimizer step, of `window` batches, but for a shorter last one of an epoch of 7."""
        before = [index for index in range(14) if index % 7 % window == 0]
        return [
            ((self.weights[after][name] - self.weights[start][name]).norm() / self.weights[start][name].norm()).item()
            for start, after in zip(before, [*before[1:], 14], strict=True)
        ]


def monitored(fit, tmp_path, *callbacks, **settings):
    copies = Copies()
    monitor = RegularizationMonitor(updates=True, per_layer=True)
    fit(copies, *callbacks, monitor, logger=TensorBoardLogger(tmp_path), **settings)
    return copies, scalars(tmp_path)


LAYERS = ["network.encoder", "network.conv", "network.head"]


@pytest.mark.parametrize("window", [1, 3])
def test_the_ratio_covers_the_whole_step(fit, tmp_path, window):
    copies, logged = monitored(fit, tmp_path, accumulate_grad_batches=window)

    steps = [copies.ratios(f"{layer}.weight", window) for layer in LAYERS]
    for layer, ratios in zip(LAYERS, steps, strict=True):
        assert list(logged[f"reg.update_ratio/{layer}"].values()) == pytest.approx(ratios, rel=1e-5)
    for statistic, position in (("min", 0), ("median", 1), ("max", 2)):
        expected = [sorted(each)[position] for each in zip(*steps, strict=True)]
        assert list(logged[f"reg/update_ratio_{statistic}"].values()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_changes_of_callbacks_around_the_update_belong_to_the_step(trainer_of, tmp_path, first):
    copies, monitor = Copies(), RegularizationMonitor(updates=True, per_layer=True)
    others = [L1Penalty(0.003, mode="proximal", select="*.head.*"), SpectralNormalization(select="*.encoder.*")]
    callbacks = [monitor, *others, copies] if first else [copies, *others, monitor]
    module = Regressor()
    trainer_of(*callbacks, logger=TensorBoardLogger(tmp_path)).fit(module, loader())

    for layer in LAYERS:
        actual = list(scalars(tmp_path)[f"reg.update_ratio/{layer}"].values())
        assert actual == pytest.approx(copies.ratios(f"{layer}.weight"), rel=1e-4)


def test_only_steps_that_are_logged_copy_weights(fit, tmp_path, monkeypatch):
    copied = []
    plain = torch.Tensor.clone

    def clone(tensor, **kwargs):
        copied.append(tensor.shape)
        return plain(tensor, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clone", clone)
    shape = torch.Size([2, 21])

    def copies_of_the_head(**arguments):
        copied.clear()
        monitor = RegularizationMonitor(metrics=None, **arguments)
        fit(monitor, logger=TensorBoardLogger(tmp_path), log_every_n_steps=7)
        return copied.count(shape)

    # Of 14 steps: the first one, and each seventh.
    assert copies_of_the_head(updates=True) - copies_of_the_head() == 3


def test_a_step_that_the_scaler_skips_moves_nothing(fit, tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    _, logged = monitored(fit, tmp_path, plugins=MixedPrecision("16-mixed", "cpu", scaler=scaler), max_epochs=4)

    ratios = list(logged["reg/update_ratio_max"].values())
    assert ratios[0] == 0
    assert ratios[-1] > 0


def test_weights_of_zeros_move_infinitely_far_and_resting_weights_not_at_all(fit, tmp_path):
    class Zero(Regressor):
        def __init__(self):
            super().__init__()
            torch.nn.init.zeros_(self.network.head.weight)
            self.unused = torch.nn.Linear(2, 2)

    _, logged = monitored(fit, tmp_path, module=Zero())

    assert logged["reg.update_ratio/network.head"][0] == float("inf")
    assert set(logged["reg.update_ratio/unused"].values()) == {0.0}


def test_each_network_of_a_gan_moves_in_its_own_steps(fit, tmp_path):
    copies, logged = monitored(fit, tmp_path, module=Gan())

    weights = [each["generator.0.weight"] for each in copies.weights]
    ratios = [((after - before).norm() / before.norm()).item() for before, after in pairwise(weights)]
    assert list(logged["reg.update_ratio/generator.0"].values()) == pytest.approx(ratios, rel=1e-5, abs=1e-9)
    assert 0 in ratios


@pytest.mark.parametrize(
    ("optimizer", "callbacks", "share"),
    [
        (lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.3), [], 0.006),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.02, weight_decay=0.3), [], 0.006),
        (lambda parameters: torch.optim.Adam(parameters, lr=0.02), [WeightDecay(0.3)], 0.006),
        (lambda parameters: torch.optim.Adam(parameters, lr=0.02), [], 0.0),
    ],
)
def test_the_share_of_decay_alone_stands_beside_it(fit, tmp_path, optimizer, callbacks, share):
    _, logged = monitored(fit, tmp_path, *callbacks, module=Regressor(optimizer))

    for statistic in ("min", "median", "max"):
        assert list(logged[f"reg/decay_ratio_{statistic}"].values()) == pytest.approx([share] * 14)
    assert list(logged["reg.decay_ratio/network.head"].values()) == pytest.approx([share] * 14)


def test_training_with_it_ends_in_the_same_weights(fit, tmp_path):
    monitor = RegularizationMonitor(updates=True)

    watched = fit(WeightDecay(0.3, kind="corrected"), monitor, logger=TensorBoardLogger(tmp_path))

    torch.testing.assert_close(watched, fit(WeightDecay(0.3, kind="corrected")), rtol=0, atol=0)


def test_the_choice_of_weights_holds_for_it(fit, tmp_path):
    monitor = RegularizationMonitor(updates=True, select=Select("*.head.*"), per_layer=True)
    fit(monitor, logger=TensorBoardLogger(tmp_path))

    tags = [tag for tag in scalars(tmp_path) if tag.startswith("reg.update_ratio/")]
    assert tags == ["reg.update_ratio/network.head"]
