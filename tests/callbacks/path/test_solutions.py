"""The path of a linear model is scikit-learn's: the largest strength, the zeros at each strength, the coefficients."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, MultiTaskLasso, enet_path, lasso_path
from torch import nn

from lightning_reg import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, RegularizationPath

INPUTS, TARGETS = load_diabetes(return_X_y=True)
INPUTS = (INPUTS - INPUTS.mean(0)) / INPUTS.std(0)
TARGETS = (TARGETS / TARGETS.std())[:, None]  # with a mean, which the intercept has to find
TASKS = np.hstack([TARGETS, TARGETS * np.sign(INPUTS[:, [1]]), INPUTS[:, [0]] * INPUTS[:, [2]]])
CELLS, IS_BENIGN = load_breast_cancer(return_X_y=True)
# Not radius, perimeter and area, which say the same: a gradient takes long to tell them apart.
CELLS = ((CELLS - CELLS.mean(0)) / CELLS.std(0))[:, [1, 4, 5, 7, 8, 9, 11, 14, 27, 28]]

OPTIMIZERS = {"SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.95), "Adam": partial(torch.optim.Adam, lr=0.05)}
CENTRED = TARGETS - TARGETS.mean(0)
EXACT = {"tol": 1e-12, "max_iter": 100_000}
SELECT = {"select": "*.weight", "mode": "proximal"}


def squares(outputs, targets):
    return (outputs - targets).square().sum() / (2 * len(targets))


def multi_task(alphas):
    return np.stack([MultiTaskLasso(alpha=a * 3**0.5, **EXACT).fit(INPUTS, TASKS).coef_ for a in alphas])


def logistic(alphas):
    found = []
    for alpha in alphas:
        model = LogisticRegression(C=1 / (alpha * len(CELLS)), solver="saga", tol=1e-9, max_iter=100_000)
        found.append(model.set_params(**WITH_L1).fit(CELLS, IS_BENIGN).coef_)
    return np.stack(found)


# Versions before 1.8 say it in another way.
WITH_L1 = {"penalty": "l1"} if LogisticRegression().penalty == "l2" else {"l1_ratio": 1}

# Of each problem: penalty, inputs, targets, loss, the largest strength in closed form, and scikit-learn's path.
PROBLEMS = {
    "lasso": (
        lambda: L1Penalty(0.7, **SELECT),
        (INPUTS, TARGETS, squares),
        np.abs(INPUTS.T @ CENTRED).max() / len(INPUTS),
        lambda alphas: lasso_path(INPUTS, CENTRED[:, 0], alphas=alphas, **EXACT)[1].T[:, None],
    ),
    "elastic net": (
        lambda: ElasticNetPenalty(0.7, 0.6, **SELECT),
        (INPUTS, TARGETS, squares),
        np.abs(INPUTS.T @ CENTRED).max() / len(INPUTS) / 0.6,
        lambda alphas: enet_path(INPUTS, CENTRED[:, 0], l1_ratio=0.6, alphas=alphas, **EXACT)[1].T[:, None],
    ),
    "multi-task lasso": (
        lambda: GroupLassoPenalty(0.7, 1, **SELECT),
        (INPUTS, TASKS, squares),
        np.linalg.norm(INPUTS.T @ (TASKS - TASKS.mean(0)), axis=1).max() / len(INPUTS) / 3**0.5,
        multi_task,
    ),
    "logistic": (
        lambda: L1Penalty(0.7, **SELECT),
        (CELLS, IS_BENIGN[:, None].astype(float), nn.functional.binary_cross_entropy_with_logits),
        np.abs(CELLS.T @ (IS_BENIGN - IS_BENIGN.mean())).max() / len(CELLS),
        logistic,
    ),
}


class Linear(LightningModule):
    """A linear model of all samples at once: the batch counts for nothing."""

    def __init__(self, inputs, targets, loss, make_optimizer):
        super().__init__()
        self.layer = nn.Linear(inputs.shape[1], targets.shape[1]).double()
        self.inputs, self.targets, self.loss = torch.tensor(inputs), torch.tensor(targets), loss
        self.make_optimizer = make_optimizer

    def training_step(self, batch, batch_idx):
        return self.loss(self.layer(self.inputs), self.targets)

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def assert_path(trainer_of, problem, optimizer, *, strengths, smallest):
    make_penalty, data, largest, solve = PROBLEMS[problem]
    penalty = make_penalty()
    path = RegularizationPath(penalty, strengths=strengths, smallest=smallest, epochs=1000, tolerance=1e-6)
    module = Linear(*data, OPTIMIZERS[optimizer])
    trainer = trainer_of(path, max_epochs=-1, log_every_n_steps=10_000)

    trainer.fit(module, range(20))

    result = path.result
    np.testing.assert_allclose(result.strengths, largest * smallest ** np.linspace(0, 1, strengths), rtol=1e-6)
    ours = np.stack([result.weights(index)["layer.weight"].numpy() for index in range(strengths)])
    theirs = solve(np.array(result.strengths))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    assert result.nonzeros[0] == 0 < result.nonzeros[-1]
    assert penalty.strength == 0.7
    # Without a monitor the choice is the last.
    np.testing.assert_array_equal(module.layer.weight.detach().numpy(), ours[-1])


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_short_path_is_that_of_scikit_learn(trainer_of, problem, optimizer):
    assert_path(trainer_of, problem, optimizer, strengths=3, smallest=0.5)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("optimizer", [pytest.param(name, marks=pytest.mark.sweep(share=0)) for name in OPTIMIZERS])
def test_fifty_strengths_are_the_path_of_scikit_learn(trainer_of, problem, optimizer):
    assert_path(trainer_of, problem, optimizer, strengths=50, smallest=1e-2)
