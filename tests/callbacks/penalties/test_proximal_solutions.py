"""Training with `mode="proximal"` ends at the solutions of solvers that nobody here has written, zeros included."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, MultiTaskLasso, Ridge, lasso_path
from torch import nn, optim

from lightning_reg import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, L2Penalty

INPUTS, TARGETS = load_diabetes(return_X_y=True)
INPUTS = (INPUTS - INPUTS.mean(0)) / INPUTS.std(0)
TARGETS = (TARGETS - TARGETS.mean()) / TARGETS.std()
# Three targets that share inputs, for the group lasso.
TASKS = np.stack([TARGETS, TARGETS * np.sign(INPUTS[:, 1]), INPUTS[:, 0] * INPUTS[:, 2]], axis=1)

EXACT = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}
SOLUTIONS = {
    "elastic_net": ElasticNet(alpha=0.1, l1_ratio=0.7, **EXACT).fit(INPUTS, TARGETS).coef_[None],
    "lasso": Lasso(alpha=0.1, **EXACT).fit(INPUTS, TARGETS).coef_[None],
    "ridge": Ridge(alpha=0.1 * len(TARGETS), fit_intercept=False, tol=1e-14).fit(INPUTS, TARGETS).coef_[None],
    "group_lasso": MultiTaskLasso(alpha=0.15, **EXACT).fit(INPUTS, TASKS).coef_,
}

OPTIMIZERS = {
    "SGD": partial(optim.SGD, lr=0.4),
    "SGD momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "SGD nesterov fused": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "SGD dampening foreach": partial(optim.SGD, lr=0.4, momentum=0.8, dampening=0.5, foreach=True),
    "SGD tensor": partial(optim.SGD, lr=torch.tensor(0.4, dtype=torch.float64)),
    "Adam": partial(optim.Adam, lr=0.02),
    "Adam amsgrad foreach": partial(optim.Adam, lr=0.02, amsgrad=True, foreach=True),
    "Adam fused": partial(optim.Adam, lr=0.02, fused=True),
    "AdamW tensor": partial(optim.AdamW, lr=torch.tensor(0.02, dtype=torch.float64), weight_decay=0.0),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RAdam": partial(optim.RAdam, lr=0.02, betas=(0.9, 0.99)),
    "Adamax": partial(optim.Adamax, lr=0.02, betas=(0.9, 0.99)),
    "Adagrad": partial(optim.Adagrad, lr=0.5, lr_decay=1e-4),
    "RMSprop": partial(optim.RMSprop, lr=0.05, eps=0.1),
    "RMSprop momentum": partial(optim.RMSprop, lr=0.02, momentum=0.5, alpha=0.9, eps=0.1),
    "RMSprop centered": partial(optim.RMSprop, lr=0.1, centered=True, eps=0.2),
    "RMSprop centered momentum": partial(optim.RMSprop, lr=0.05, centered=True, momentum=0.5, alpha=0.97, eps=0.2),
}
SLOW = ("NAdam", "RMSprop centered momentum")


class LeastSquares(LightningModule):
    """Several regressions at once, each with a weight and targets of its own."""

    def __init__(self, targets, make_optimizer, sign=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.parts = nn.ModuleDict({name: nn.Linear(10, len(values.T), bias=False) for name, values in targets.items()})
        self.double()
        for part in self.parts.values():
            part.weight.data = 0.3 * torch.randn(part.weight.shape, generator=generator, dtype=torch.float64)
        self.targets = {name: torch.tensor(values) for name, values in targets.items()}
        self.inputs = torch.tensor(INPUTS)
        self.make_optimizer = make_optimizer
        self.sign = sign

    def training_step(self, batch, batch_idx):
        residuals = [self.parts[name](self.inputs) - targets for name, targets in self.targets.items()]
        return self.sign * sum(part.square().sum() for part in residuals) / (2 * len(INPUTS))

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())

    def solutions(self):
        return {name: part.weight.detach().numpy() for name, part in self.parts.items()}


def solve(trainer_of, module, *penalties, steps=450):
    trainer_of(*penalties, max_epochs=1, log_every_n_steps=10_000).fit(module, range(steps))
    return module.solutions()


def one_target(*names):
    return dict.fromkeys(names, TARGETS[:, None])


def all_penalties(mode="proximal"):
    return [
        ElasticNetPenalty(0.1, 0.7, select="parts.elastic_net.*", mode=mode),
        L1Penalty(0.1, select="parts.lasso.*", mode=mode),
        L2Penalty(0.05, select="parts.ridge.*", mode=mode),
        GroupLassoPenalty(0.15 / 3**0.5, dim=1, select="parts.group_lasso.*", mode=mode),
    ]


def assert_solved(found):
    for name, expected in SOLUTIONS.items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(found[name] == 0, expected == 0, err_msg=name)


def test_scikit_learns_solutions_have_zeros_to_find():
    assert [(solution == 0).sum() for solution in SOLUTIONS.values()] == [5, 6, 0, 15]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_ends_at_scikit_learns_solution(trainer_of, name):
    targets = one_target("elastic_net", "lasso", "ridge") | {"group_lasso": TASKS}

    steps = 700 if name in SLOW else 450
    found = solve(trainer_of, LeastSquares(targets, OPTIMIZERS[name]), *all_penalties(), steps=steps)

    assert_solved(found)


def test_maximising_the_negative_loss_is_the_same(trainer_of):
    targets = one_target("elastic_net", "lasso", "ridge") | {"group_lasso": TASKS}
    module = LeastSquares(targets, partial(optim.Adam, lr=0.02, maximize=True), sign=-1.0)

    assert_solved(solve(trainer_of, module, *all_penalties()))


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_gradients_alone_make_nothing_zero(trainer_of, mode):
    targets = one_target("elastic_net", "lasso", "ridge") | {"group_lasso": TASKS}

    found = solve(trainer_of, LeastSquares(targets, OPTIMIZERS["SGD"]), *all_penalties(mode))

    assert all((solution != 0).all() for solution in found.values())


def test_parameter_groups_with_rates_of_their_own_and_a_falling_rate(trainer_of):
    class TwoGroups(LeastSquares):
        def configure_optimizers(self):
            optimizer = optim.Adam([{"params": list(part.parameters())} for part in self.parts.values()], lr=0.02)
            for rate, group in zip((0.01, 0.03, 0.02, 0.015), optimizer.param_groups, strict=True):
                group["lr"] = rate
            schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    targets = one_target("elastic_net", "lasso", "ridge") | {"group_lasso": TASKS}

    assert_solved(solve(trainer_of, TwoGroups(targets, None), *all_penalties(), steps=1000))


def test_two_optimizers_in_manual_optimization(trainer_of):
    class Manual(LeastSquares):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            first, *rest = self.parts.values()
            others = [parameter for part in rest for parameter in part.parameters()]
            return optim.Adam(first.parameters(), lr=0.02), optim.SGD(others, lr=0.1, momentum=0.9)

    targets = one_target("elastic_net", "lasso", "ridge") | {"group_lasso": TASKS}

    assert_solved(solve(trainer_of, Manual(targets, None), *all_penalties()))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["SGD momentum", "Adam"])
def test_l1_and_group_lasso_on_one_weight_are_the_sparse_group_lasso(trainer_of, name, order):
    penalties = [L1Penalty(0.04, mode="proximal"), GroupLassoPenalty(0.05, dim=1, mode="proximal")][::order]

    module = LeastSquares({"group_lasso": TASKS}, OPTIMIZERS[name])
    weight = solve(trainer_of, module, *penalties, steps=700)["group_lasso"]

    # Optimality: where entries are not zero, the gradient of the objective is; where a group is, a subgradient can be.
    gradient = (INPUTS.T @ (INPUTS @ weight.T - TASKS)).T / len(INPUTS)
    norms = np.linalg.norm(weight, axis=0)
    softened = np.sign(gradient) * np.maximum(np.abs(gradient) - 0.04, 0)
    bound = 0.05 * 3**0.5
    assert (norms == 0).sum() >= 2
    assert ((weight == 0) & (norms > 0)).sum() >= 2
    assert (np.linalg.norm(softened, axis=0)[norms == 0] <= bound).all()
    directions = weight / np.where(norms, norms, 1)
    total = gradient + 0.04 * np.sign(weight) + bound * directions
    assert np.abs(total[weight != 0]).max() < 1e-6
    assert (np.abs(gradient[(weight == 0) & (norms > 0)]) <= 0.04).all()


class Quadratic(LightningModule):
    """The loss (w - center)^T H (w - center) / 2."""

    def __init__(self, hessian, center, make_optimizer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, len(center), dtype=torch.float64))
        self.hessian, self.center = torch.tensor(hessian), torch.tensor(center)
        self.make_optimizer = make_optimizer

    def training_step(self, batch, batch_idx):
        distance = (self.weight - self.center).squeeze(0)
        return distance @ self.hessian @ distance / 2

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "RMSprop centered"])
def test_a_diagonal_hessian_has_a_closed_form(trainer_of, name):
    curvature, center = np.array([0.5, 1.0, 2.0, 1.0, 0.7]), np.array([1.5, -1.0, 0.1, 0.29, -0.2])
    module = Quadratic(np.diag(curvature), center, OPTIMIZERS[name])

    trainer_of(L1Penalty(0.3, mode="proximal"), max_epochs=1, log_every_n_steps=10_000).fit(module, range(700))

    expected = np.sign(center) * np.maximum(np.abs(center) - 0.3 / curvature, 0)
    np.testing.assert_allclose(module.weight.detach().numpy()[0], expected, atol=1e-9)
    np.testing.assert_array_equal(module.weight.detach().numpy()[0] == 0, [False, False, True, True, True])


def test_ridge_shrinks_along_eigenvectors(trainer_of):
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(4, 6))
    hessian, center = factor @ factor.T / 6, generator.normal(size=4)
    module = Quadratic(hessian, center, partial(optim.SGD, lr=0.2, momentum=0.9))

    trainer_of(L2Penalty(0.4 / 2, mode="proximal"), max_epochs=1, log_every_n_steps=10_000).fit(module, range(700))

    values, vectors = np.linalg.eigh(hessian)
    expected = vectors @ (values / (values + 0.4) * (vectors.T @ center))
    np.testing.assert_allclose(module.weight.detach().numpy()[0], expected, atol=1e-9)


def test_coefficients_enter_along_the_path_as_scikit_learns_do(trainer_of):
    largest = np.abs(INPUTS.T @ TARGETS).max() / len(TARGETS)
    alphas = largest * np.geomspace(0.98, 0.01, 20)
    strengths = [1.001 * largest, largest, 0.999 * largest, *alphas]
    names = [f"at_{index}" for index in range(len(strengths))]
    penalties = [
        L1Penalty(float(strength), select=f"parts.{name}.*", mode="proximal")
        for name, strength in zip(names, strengths, strict=True)
    ]

    found = solve(trainer_of, LeastSquares(one_target(*names), OPTIMIZERS["SGD nesterov fused"]), *penalties, steps=400)

    above, _, below, *path = (found[name][0] for name in names)
    assert (above == 0).all()
    assert (below != 0).sum() == 1
    expected = lasso_path(INPUTS, TARGETS, alphas=alphas, tol=1e-14, max_iter=100_000)[1].T
    np.testing.assert_allclose(path, expected, atol=1e-6)
    np.testing.assert_array_equal(np.array(path) != 0, expected != 0)
    assert len({tuple(row) for row in expected != 0}) >= 8  # the path has something to tell


def test_a_rate_of_zero_shrinks_nothing(trainer_of):
    module = LeastSquares(one_target("lasso"), partial(optim.SGD, lr=0.0, momentum=0.9))
    before = module.parts["lasso"].weight.detach().numpy().copy()

    found = solve(trainer_of, module, L1Penalty(10.0, mode="proximal"), steps=5)

    np.testing.assert_array_equal(found["lasso"], before)
