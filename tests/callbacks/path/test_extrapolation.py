"""A strength starts on the straight line through the two minima before, with the momentum that belongs there."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_reg import L1Penalty, RegularizationPath
from tests.models import weights_of
from tests.reference import assert_same_weights

# With orthonormal inputs, the minimum of the lasso is the soft threshold of these.
COEFFICIENTS = np.array([[2.0, -1.0, 0.9, 0.35, 0.1]])

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.5),
    "momentum": partial(torch.optim.SGD, lr=0.2, momentum=0.7),
    "Adam": partial(torch.optim.Adam, lr=0.05, betas=(0.8, 0.9)),
}


def lasso(strength):
    return np.sign(COEFFICIENTS) * np.maximum(np.abs(COEFFICIENTS) - strength, 0)


class Orthonormal(LightningModule):
    """Least squares on orthonormal inputs; knows with which weights each epoch began."""

    def __init__(self, make_optimizer=OPTIMIZERS["SGD"]):
        super().__init__()
        self.layer = nn.Linear(5, 1, bias=False).double()
        nn.init.zeros_(self.layer.weight)
        self.make_optimizer = make_optimizer
        self.starts = {}

    def on_train_batch_start(self, batch, batch_idx):
        (path,) = (callback for callback in self.trainer.callbacks if isinstance(callback, RegularizationPath))
        self.starts.setdefault(path.penalty.strength, []).append(self.layer.weight.detach().clone())

    def training_step(self, batch, batch_idx):
        return 0.5 * (self.layer.weight - torch.tensor(COEFFICIENTS)).square().sum()

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def path_of(*strengths, **settings):
    penalty = L1Penalty(0.7, mode="proximal")
    return RegularizationPath(penalty, strengths=strengths, **({"epochs": 1000, "tolerance": 1e-4} | settings))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_third_strength_starts_at_its_minimum(trainer_of, optimizer):
    path, module = path_of(0.6, 0.5, 0.42), Orthonormal(OPTIMIZERS[optimizer])

    trainer_of(path, max_epochs=-1).fit(module, range(1))

    np.testing.assert_allclose(module.starts[0.42][0], lasso(0.42), rtol=0, atol=3e-4)
    # It stays there: momentum does not carry it away.
    assert len(module.starts[0.42]) < len(module.starts[0.5]) / 2
    np.testing.assert_allclose(path.result.weights(2)["layer.weight"], lasso(0.42), rtol=0, atol=1e-4)


def test_upwards_a_weight_ends_at_zero(trainer_of):
    path, module = path_of(0.2, 0.3, 0.4, direction="up"), Orthonormal()

    trainer_of(path, max_epochs=-1).fit(module, range(1))

    np.testing.assert_allclose(module.starts[0.4][0], lasso(0.4), rtol=0, atol=3e-4)
    assert module.starts[0.4][0][0, 3] == 0


def test_a_far_strength_starts_twice_the_last_way_beyond(trainer_of):
    path, module = path_of(0.8, 0.7, 0.02), Orthonormal()

    trainer_of(path, max_epochs=-1).fit(module, range(1))

    expected = np.where(lasso(0.7) != 0, lasso(0.5), 0)  # zeros stay
    np.testing.assert_allclose(module.starts[0.02][0], expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("settings", [{"tolerance": None, "epochs": 3}, {"epochs": 3}], ids=["no tolerance", "cut"])
def test_strengths_that_are_not_solved_lead_nowhere(trainer_of, settings):
    path, module = path_of(0.6, 0.5, 0.42, **settings), Orthonormal()

    trainer_of(path, max_epochs=-1).fit(module, range(1))

    assert torch.equal(module.starts[0.42][0], path.result.weights(1)["layer.weight"])


def test_noise_in_the_step_sizes_of_adam_stays(trainer_of):
    class Noisy(Orthonormal):
        def on_train_epoch_end(self):
            self.state = self.optimizers().state[self.layer.weight]
            self.state["exp_avg_sq"].copy_(self.state["exp_avg"].square() + 3)

        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            if len(self.starts) == 3:
                self.squares = getattr(self, "squares", self.state["exp_avg_sq"].clone())
                self.means = getattr(self, "means", self.state["exp_avg"].clone())

    path, module = path_of(0.6, 0.5, 0.42, tolerance=0.01), Noisy(partial(torch.optim.Adam, lr=0.5))

    trainer_of(path, max_epochs=-1).fit(module, range(1))

    # At a minimum the gradient of a weight that is not zero is the strength.
    np.testing.assert_allclose(module.means[0, :3].abs(), 0.42, rtol=0.05)
    np.testing.assert_allclose(module.squares, module.means.square() + 3, rtol=1e-12)


@pytest.mark.parametrize("after", [0, 1], ids=["between two strengths", "after the first step of a strength"])
@pytest.mark.parametrize("at_epoch_end", [True, False])
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each run has a folder of its own
def test_a_resumed_path_equals_the_uninterrupted_one(trainer_of, tmp_path, after, at_epoch_end):
    def fit(folder, ckpt_path=None):
        path, module = path_of(0.6, 0.5, 0.42, 0.3), Orthonormal(OPTIMIZERS["momentum"])
        often = {"every_n_epochs": 1, "save_on_train_epoch_end": True} if at_epoch_end else {"every_n_train_steps": 1}
        keep = ModelCheckpoint(tmp_path / folder, filename="{step}", save_top_k=-1, **often)
        trainer = trainer_of(path, keep, max_epochs=-1, enable_checkpointing=True)
        trainer.fit(module, range(1), ckpt_path=ckpt_path)
        return path.result, module, trainer.global_step

    expected, module, steps = fit("whole")
    first = len(module.starts[0.6]) + len(module.starts[0.5]) + after

    found, resumed, resumed_steps = fit("resumed", tmp_path / "whole" / f"step={first}.ckpt")

    assert resumed_steps == steps
    assert_same_weights(weights_of(resumed), weights_of(module), rtol=0.0)
    for index in range(4):
        assert torch.equal(found.weights(index)["layer.weight"], expected.weights(index)["layer.weight"])


def test_a_checkpoint_between_two_strengths_has_the_minimum(trainer_of, tmp_path):
    path, module = path_of(0.6, 0.5, 0.42), Orthonormal()
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)

    trainer_of(path, keep, max_epochs=-1, enable_checkpointing=True).fit(module, range(1))

    last = len(module.starts[0.6]) + len(module.starts[0.5])
    saved = torch.load(tmp_path / f"step={last}.ckpt", weights_only=False)["state_dict"]["layer.weight"]
    assert torch.equal(saved, path.result.weights(1)["layer.weight"])
