"""Strengths compare with `weight_decay` and with scikit-learn's `alpha` as the README says."""

import pytest
import torch
from lightning.pytorch import LightningModule
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


class LinearRegression(LightningModule):
    """Least squares on standardised data, by gradient descent."""

    def __init__(self, loss) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 1)
        self.loss = loss

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return self.loss(self.linear(inputs), targets)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.95)
        # Shorter and shorter steps: a gradient step on |w| jumps across zero by its length.
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, total_iters=3000)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def half_mse(outputs, targets):
    return nn.functional.mse_loss(outputs, targets) / 2


def l1(strength, loss, alpha):
    return L1Penalty(strength, mode="grad"), loss, Lasso(alpha=alpha, tol=1e-12), 1e-3


def elastic_net(alpha, loss):
    estimator = ElasticNet(alpha=0.1, l1_ratio=0.7, tol=1e-12)
    return ElasticNetPenalty(alpha, 0.7, mode="grad"), loss, estimator, 1e-3


@pytest.mark.parametrize(
    ("penalty", "loss", "estimator", "tolerance"),
    [
        (L2Penalty(30 / 442, mode="grad"), nn.functional.mse_loss, Ridge(alpha=30), 1e-6),
        l1(0.1, half_mse, 0.1),
        l1(0.2, nn.functional.mse_loss, 0.1),
        elastic_net(0.1, half_mse),
        elastic_net(0.2, nn.functional.mse_loss),
    ],
    ids=["ridge", "lasso", "lasso with mse_loss", "elastic net", "elastic net with mse_loss"],
)
def test_scikit_learn_finds_the_same_minimum(trainer_of, penalty, loss, estimator, tolerance):
    inputs, targets = load_diabetes(return_X_y=True)
    inputs = StandardScaler().fit_transform(inputs)
    targets = (targets - targets.mean()) / targets.std()
    module = LinearRegression(loss)
    batch = (torch.from_numpy(inputs), torch.from_numpy(targets).unsqueeze(1))

    data = DataLoader([batch] * 3000, batch_size=None)

    trainer_of(penalty, max_epochs=1, precision="64-true", log_every_n_steps=1000).fit(module, data)

    found, expected = module.linear.weight.detach().numpy()[0], estimator.fit(inputs, targets).coef_
    assert found == pytest.approx(expected, rel=0, abs=tolerance)
