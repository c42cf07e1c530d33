"""`reg/optimality/<name>`: 0 at the solutions of scikit-learn, and the distance that NumPy finds anywhere else."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import optim

from lightning_reg import AnchorPenalty, Constant, GroupLassoPenalty, L1Penalty, L2Penalty, Penalty, TargetSparsity
from tests.callbacks.penalties.test_proximal_solutions import (
    INPUTS,
    SOLUTIONS,
    TARGETS,
    TASKS,
    LeastSquares,
    all_penalties,
    one_target,
)
from tests.models import Regressor, loader

EVERYTHING = one_target("elastic_net", "lasso", "ridge") | {"group_lasso": TASKS}
KEYS = {"elastic_net": "elastic_net", "lasso": "l1", "ridge": "l2", "group_lasso": "group_lasso"}


def logged(trainer_of, weights, *callbacks, **settings):
    """Return what is logged of the first step from `weights`."""
    module = LeastSquares(EVERYTHING, partial(optim.SGD, lr=0.1))
    for name, weight in weights.items():
        module.parts[name].weight.data = torch.tensor(weight)
    trainer = trainer_of(*(callbacks or all_penalties()), max_epochs=1, log_every_n_steps=1, **settings)
    trainer.fit(module, range(1))
    values = {tag: value.item() for tag, value in trainer.callback_metrics.items()}
    return {name: values[f"reg/optimality/{key}"] for name, key in KEYS.items()}


def gradients(weights):
    targets = {name: values if values.ndim == 2 else values[:, None] for name, values in EVERYTHING.items()}
    return {name: (INPUTS @ weight.T - targets[name]).T @ INPUTS / len(INPUTS) for name, weight in weights.items()}


def residuals(weights):
    """Return the distances by hand: entry by entry, group by group."""
    found, grads = {}, gradients(weights)
    for name, strength, l1, l2 in (
        ("elastic_net", 0.1, 0.07, 0.03),
        ("lasso", 0.1, 0.1, 0.0),
        ("ridge", 0.05, 0.0, 0.1),
    ):
        worst = 0.0
        for weight, grad in zip(weights[name].flat, grads[name].flat, strict=True):
            nearest = l1 * np.sign(weight) if weight else np.clip(-grad, -l1, l1)
            worst = max(worst, abs(grad + nearest + l2 * weight))
        found[name] = worst / strength
    worst = 0.0
    for weight, grad in zip(weights["group_lasso"].T, grads["group_lasso"].T, strict=True):  # three entries a group
        length = np.linalg.norm(weight)
        distance = np.linalg.norm(grad + 0.15 * weight / length) if length else max(np.linalg.norm(grad) - 0.15, 0)
        worst = max(worst, distance)
    found["group_lasso"] = worst / (0.15 / 3**0.5)
    return found


def test_it_is_zero_at_the_solutions_of_scikit_learn(trainer_of):
    for name, value in logged(trainer_of, SOLUTIONS).items():
        assert value < 1e-6, name


def test_elsewhere_it_is_the_distance_from_the_subdifferential(trainer_of):
    generator = np.random.default_rng(0)
    some = {name: generator.normal(size=weight.shape) for name, weight in SOLUTIONS.items()}
    for weight in some.values():
        weight[:, ::3] = 0

    found = logged(trainer_of, some)

    assert found == pytest.approx(residuals(some), rel=1e-6)


def test_it_is_large_half_way_and_at_zeros_in_the_wrong_places(trainer_of):
    wrong = {name: np.roll(weight, 3, axis=1) for name, weight in SOLUTIONS.items()}

    assert min(logged(trainer_of, {name: 0.5 * weight for name, weight in SOLUTIONS.items()}).values()) > 0.1
    assert min(logged(trainer_of, wrong).values()) > 0.1


def test_it_is_of_the_whole_step_before_clipping_with_the_strength_of_the_step(trainer_of):
    # Half the strength by the schedule; half the gradient and penalty, in a window of two with one batch.
    penalties = all_penalties()
    for penalty in penalties:
        penalty.strength *= 2
        penalty.schedule = Constant(0.5)

    found = logged(trainer_of, SOLUTIONS, *penalties, gradient_clip_val=1e-9, accumulate_grad_batches=2)

    assert max(found.values()) < 1e-6


def test_a_penalty_in_the_gradient_belongs_to_the_step_wherever_it_is_listed(trainer_of):
    # Ridge and lasso together are the elastic net.
    for order in (1, -1):
        module = LeastSquares(one_target("elastic_net"), partial(optim.SGD, lr=0.1))
        module.parts["elastic_net"].weight.data = torch.tensor(SOLUTIONS["elastic_net"])
        penalties = [L1Penalty(0.07, mode="proximal"), L2Penalty(0.015, mode="grad")][::order]
        trainer = trainer_of(*penalties, max_epochs=1)
        trainer.fit(module, range(1))

        assert trainer.callback_metrics["reg/optimality/l1"] < 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_under_fp16_it_is_of_gradients_without_their_scale(trainer_of, fused):
    class Half(Regressor):
        def configure_optimizers(self):
            return optim.SGD(self.parameters(), lr=0.01, fused=fused)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    found = []
    for precision in ({}, {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)}):
        torch.manual_seed(0)
        trainer = trainer_of(L1Penalty(0.3, mode="proximal"), max_epochs=1, **precision)
        trainer.fit(Half(), loader(1))
        found.append(trainer.callback_metrics["reg/optimality/l1"].item())

    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_with_two_optimizers_it_is_the_larger(trainer_of):
    class Two(LeastSquares):
        def __init__(self):
            super().__init__(one_target("lasso", "other"), None)
            self.automatic_optimization = False
            self.parts["lasso"].weight.data = torch.tensor(SOLUTIONS["lasso"])
            self.parts["other"].weight.data = torch.tensor(2 * SOLUTIONS["lasso"])

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            return [optim.SGD([self.parts[name].weight], lr=0.1) for name in ("other", "lasso")]

    trainer = trainer_of(L1Penalty(0.1, mode="proximal"), max_epochs=1)
    trainer.fit(Two(), range(1))

    weight = 2 * SOLUTIONS["lasso"]
    grad = (INPUTS @ weight.T - TARGETS[:, None]).T @ INPUTS / len(INPUTS)
    distances = np.where(weight != 0, abs(grad + 0.1 * np.sign(weight)), np.maximum(abs(grad) - 0.1, 0))
    assert trainer.callback_metrics["reg/optimality/l1"].item() == pytest.approx(distances.max() / 0.1)


@pytest.mark.parametrize(
    "penalty",
    [
        L1Penalty(0.1, mode="proximal"),
        AnchorPenalty(0.1, norm="l1", mode="proximal"),
        GroupLassoPenalty(0.1, mode="proximal"),
    ],
    ids=repr,
)
def test_of_a_weight_that_is_worked_on_in_parts_no_entry_is_forgotten(trainer_of, penalty):
    class Large(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(400, 3000, bias=False)
            self.layer.weight.data.zero_()

        def training_step(self, batch, batch_idx):
            return 3.0 * self.layer.weight[-1, -1]

        def configure_optimizers(self):
            return optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return range(1)

    trainer = trainer_of(penalty, max_epochs=1)
    trainer.fit(Large())

    threshold = 400**0.5 if isinstance(penalty, GroupLassoPenalty) else 1.0
    (found,) = (value for tag, value in trainer.callback_metrics.items() if tag.startswith("reg/optimality/"))
    assert found.item() == pytest.approx(30 - threshold)


class OwnPenalty(Penalty):
    elementwise = True

    def penalty(self, weights):
        return sum(weight.abs().sum() for weight in weights)

    def proximal(self, weights, factors):
        for weight, factor in zip(weights, factors, strict=True):
            weight.copy_(weight.sign() * (weight.abs() - factor).clamp(min=0))


@pytest.mark.parametrize(
    "silent",
    [
        L1Penalty(0.1),
        L1Penalty(0.0, mode="proximal"),
        L1Penalty(0.1, mode="proximal", schedule=Constant(0.0)),
        OwnPenalty(0.1, mode="proximal"),
        TargetSparsity(GroupLassoPenalty(0.0, mode="proximal"), 0.5),
    ],
    ids=repr,
)
def test_without_a_strength_or_a_subdifferential_there_is_no_residual(trainer_of, silent):
    trainer = trainer_of(silent, max_epochs=1)
    trainer.fit(Regressor(), loader())

    assert not [tag for tag in trainer.callback_metrics if "optimality" in tag]
