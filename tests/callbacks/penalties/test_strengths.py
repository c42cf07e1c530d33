"""Strengths compare with `weight_decay` and with scikit-learn's `alpha` as the documentation says."""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty, Select
from tests.models import Regressor
from tests.reference import assert_same_weights


@pytest.mark.parametrize("mode", ["loss", "grad"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_weight_decay_is_twice_the_strength_of_l2_on_every_parameter(fit, optimizer, mode):
    def with_decay(parameters):
        return optimizer(parameters, lr=0.01, weight_decay=0.2)

    def without(parameters):
        return optimizer(parameters, lr=0.01)

    decayed = fit(module=Regressor(with_decay))

    assert_same_weights(
        fit(L2Penalty(0.1, select=Select(min_ndim=0), mode=mode), module=Regressor(without)), decayed, rtol=1e-5
    )


def half_mse(outputs, targets):
    return nn.functional.mse_loss(outputs, targets) / 2


def l1(strength, loss):
    return partial(L1Penalty, strength), loss, Lasso(alpha=0.1, tol=1e-12), 1e-3


def elastic_net(alpha, loss):
    return partial(ElasticNetPenalty, alpha, 0.7), loss, ElasticNet(alpha=0.1, l1_ratio=0.7, tol=1e-12), 1e-3


# Penalty, data loss, what minimises the same in scikit-learn, how near gradient descent comes to it.
PROBLEMS = {
    "ridge": (partial(L2Penalty, 30 / 442), nn.functional.mse_loss, Ridge(alpha=30), 1e-6),
    "lasso": l1(0.1, half_mse),
    "lasso with mse_loss": l1(0.2, nn.functional.mse_loss),
    "elastic net": elastic_net(0.1, half_mse),
    "elastic net with mse_loss": elastic_net(0.2, nn.functional.mse_loss),
}


class LinearRegressions(LightningModule):
    """Least squares on standardised data, by gradient descent: all problems at once, each with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(10, 1) for name in PROBLEMS})

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return sum(loss(self.parts[name](inputs), targets) for name, (_, loss, *_) in PROBLEMS.items())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.95)
        # Shorter and shorter steps: a gradient step on |w| jumps across zero by its length.
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, total_iters=3000)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.fixture(scope="module")
def data():
    inputs, targets = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(inputs), (targets - targets.mean()) / targets.std()


@pytest.fixture(scope="module")
def found(data):
    """Return the coefficients of each problem."""
    inputs, targets = map(torch.from_numpy, data)
    module = LinearRegressions()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[make(select=f"parts.{name}.weight", mode="grad") for name, (make, *_) in PROBLEMS.items()],
        max_epochs=1,
        precision="64-true",
        logger=False,
        log_every_n_steps=1000,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([(inputs, targets.unsqueeze(1))] * 3000, batch_size=None))
    return {name: part.weight.detach().numpy()[0] for name, part in module.parts.items()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_scikit_learn_finds_the_same_minimum(data, found, name):
    *_, estimator, tolerance = PROBLEMS[name]

    assert found[name] == pytest.approx(estimator.fit(*data).coef_, rel=0, abs=tolerance)
