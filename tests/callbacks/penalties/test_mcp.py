"""The minimax concave penalty where its minimum is known: a quadratic loss, entry by entry."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn, optim

from lightning_reg import Linear, MCPPenalty, TargetSparsity

CENTER = np.array([[0.05, -0.09, 0.11, -0.2, 0.29, 0.31, -0.8, 2.0]])
STRENGTH, GAMMA = 0.1, 3.0
# Of (w - center)^2 / 2 and the penalty: as the loss has curvature 1, the operator for a step size of 1.
SOLUTION = np.where(
    np.abs(CENTER) <= STRENGTH,
    0,
    np.where(
        np.abs(CENTER) <= GAMMA * STRENGTH,
        np.sign(CENTER) * (np.abs(CENTER) - STRENGTH) / (1 - 1 / GAMMA),
        CENTER,
    ),
)
OPTIMIZERS = {
    "SGD": lambda parameters: optim.SGD(parameters, lr=0.4),
    # Step sizes below gamma (1 - momentum).
    "SGD momentum": lambda parameters: optim.SGD(parameters, lr=0.02, momentum=0.9),
    "Adam": lambda parameters: optim.Adam(parameters, lr=0.02, eps=0.1),
    "RMSprop": lambda parameters: optim.RMSprop(parameters, lr=0.05, eps=0.1),
}


class Diagonal(LightningModule):
    def __init__(self, optimizer, start=CENTER):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))
        self.center = torch.tensor(CENTER)
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        return (self.weight - self.center).square().sum() / 2

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def solve(trainer_of, module, penalty, steps=400):
    trainer = trainer_of(penalty, max_epochs=1, log_every_n_steps=steps)
    trainer.fit(module, range(steps))
    return module.weight.detach().numpy(), trainer.callback_metrics


@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
def test_complex_weights_are_refused_by_name_before_training(trainer_of, mode):
    module = Diagonal(OPTIMIZERS["SGD"])
    module.phases = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))

    with pytest.raises(TypeError, match=r"MCPPenalty takes real weights, but 'phases' is torch.complex64"):
        trainer_of(MCPPenalty(0.1, mode=mode)).fit(module, range(1))

    solve(trainer_of, module, MCPPenalty(0.1, mode=mode, select="weight"), steps=1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_ends_at_the_minimum_with_its_zeros_and_large_weights_as_without_a_penalty(trainer_of, name):
    module = Diagonal(OPTIMIZERS[name], start=np.full_like(CENTER, 0.4))

    found, logged = solve(trainer_of, module, MCPPenalty(STRENGTH, GAMMA, mode="proximal"), steps=700)

    np.testing.assert_allclose(found, SOLUTION, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found == 0, SOLUTION == 0)
    assert logged["reg/optimality/mcp"] < 1e-5


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_gradients_also_end_there_except_for_the_zeros(trainer_of, mode):
    found, logged = solve(trainer_of, Diagonal(OPTIMIZERS["SGD"]), MCPPenalty(STRENGTH, GAMMA, mode=mode))

    inner = SOLUTION != 0
    np.testing.assert_allclose(found[inner], SOLUTION[inner], rtol=0, atol=1e-6)
    modulus = np.abs(found)
    terms = np.where(
        modulus <= GAMMA * STRENGTH, STRENGTH * modulus - modulus**2 / (2 * GAMMA), GAMMA * STRENGTH**2 / 2
    )
    assert logged["reg/penalty/mcp"].item() == pytest.approx(terms.sum(), rel=0.05)  # of the step before the last


def test_a_schedule_changes_from_where_on_weights_are_left_alone(trainer_of):
    # At half the strength, 0.2 is beyond the end of the penalty, and 0.09 is not zero.
    penalty = MCPPenalty(2 * STRENGTH, GAMMA, mode="proximal", schedule=Linear(0.0, 0.25, 100))

    found, _ = solve(trainer_of, Diagonal(OPTIMIZERS["SGD"]), penalty)

    half = STRENGTH / 2
    expected = np.where(np.abs(CENTER) <= 3 * half, np.sign(CENTER) * (np.abs(CENTER) - half) * 1.5, CENTER)
    np.testing.assert_allclose(found, np.where(np.abs(CENTER) <= half, 0, expected), rtol=0, atol=1e-6)


def test_the_residual_is_the_distance_from_the_subdifferential(trainer_of):
    weight = np.array([[0.0, 0.0, 0.15, -0.25, 0.4, 0.31, -0.8, 1.5]])
    gradient = weight - CENTER
    slope = np.sign(weight) * np.maximum(STRENGTH - np.abs(weight) / GAMMA, 0)
    distances = np.where(weight == 0, np.maximum(np.abs(gradient) - STRENGTH, 0), np.abs(gradient + slope))

    for entry in range(8):  # by itself, for only the largest of all is logged
        module = Diagonal(OPTIMIZERS["SGD"])
        module.weight.data, module.center = (torch.tensor(x[:, [entry]]) for x in (weight, CENTER))
        _, logged = solve(trainer_of, module, MCPPenalty(STRENGTH, GAMMA, mode="proximal"), steps=1)

        assert logged["reg/optimality/mcp"].item() == pytest.approx(distances[0, entry] / STRENGTH, abs=1e-6)


def test_it_takes_no_target_share_of_zeros():
    with pytest.raises(ValueError, match="`penalty` must make zeros and define the strengths"):
        TargetSparsity(MCPPenalty(0.1, mode="proximal"), 0.5)


def test_gamma_must_be_positive():
    with pytest.raises(ValueError, match="`gamma` must be a finite number > 0, got 0"):
        MCPPenalty(0.1, 0)
