"""The largest strength is where all chosen weights vanish, with all others at their optimum."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_reg import L1Penalty, RegularizationPath

RNG = np.random.default_rng(0)
# Not centred: how large the gradient of the weights is depends on the intercept.
INPUTS = 0.5 * RNG.normal(size=(60, 5)) + [2, -1, 0.5, 0, 1]
TARGETS = INPUTS @ [1, 0, -0.5, 0, 0] + 3 + 0.2 * RNG.normal(size=60)
LARGEST = np.abs(INPUTS.T @ (TARGETS - TARGETS.mean())).max() / 60

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.3),
    "slow SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD that oscillates": partial(torch.optim.SGD, lr=0.05, momentum=0.8),
    "Adam that drifts": partial(torch.optim.Adam, lr=0.1),
}


def l1(**settings):
    return L1Penalty(0.5, mode="proximal", **({"select": "*.weight"} | settings))


def path_of(penalty, **settings):
    return RegularizationPath(penalty, **({"strengths": 2, "epochs": 1} | settings))


class Regression(LightningModule):
    """Least squares on all samples at once, or on halves."""

    def __init__(self, make_optimizer=OPTIMIZERS["SGD"], network=None, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.network = (network or nn.Linear(5, 1)).to(dtype)
        self.inputs, self.targets = torch.tensor(INPUTS, dtype=dtype), torch.tensor(TARGETS, dtype=dtype)[:, None]
        self.make_optimizer = make_optimizer

    def loss(self, network, rows=slice(None)):
        return 0.5 * nn.functional.mse_loss(network(self.inputs[rows]), self.targets[rows])

    def training_step(self, batch, batch_idx):
        return self.loss(self.network)

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_the_closed_form_with_the_intercept_at_its_optimum(trainer_of, optimizer):
    path = path_of(l1())

    trainer_of(path, max_epochs=-1).fit(Regression(OPTIMIZERS[optimizer]), range(5))

    assert path.result.strengths[0] == pytest.approx(LARGEST, rel=1e-6)
    assert path.result.nonzeros[0] == 0


@pytest.mark.parametrize("strengths", [2, [0.3, 0.1]], ids=["searched", "given"])
def test_an_intercept_is_at_its_optimum_although_no_gradient_of_a_weight_depends_on_it(trainer_of, strengths):
    module = Regression(partial(torch.optim.Adam, lr=0.1))
    module.inputs -= module.inputs.mean(0)
    path = path_of(l1(), strengths=strengths, epochs=1000, tolerance=1e-2)

    trainer_of(path, max_epochs=-1).fit(module, range(1))

    # The targets are far from zero, so the intercept moves for much longer than the weights.
    assert module.network.bias.item() == pytest.approx(TARGETS.mean(), rel=1e-2)


def test_an_intercept_that_the_optimizer_decays_is_waited_for_no_longer_than_it_moves(trainer_of):
    def decay_the_intercept(parameters):
        weight, *others = parameters
        return torch.optim.SGD([{"params": [weight]}, {"params": others, "weight_decay": 0.1}], lr=0.3)

    module = Regression(decay_the_intercept)
    module.network.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))
    module.inputs -= module.inputs.mean(0)
    trainer = trainer_of(path_of(l1(), strengths=[0.3, 0.1], epochs=1000, tolerance=1e-2), max_epochs=-1)

    trainer.fit(module, range(1))

    assert trainer.current_epoch < 200  # the frozen layer has no gradient, so it is not decayed
    # The minimum of (b - mean)^2 / 2 + 0.1 b^2 / 2.
    assert module.network.bias.item() == pytest.approx(TARGETS.mean() / 1.1, rel=1e-2)


def test_accumulated_gradients_are_those_of_the_epoch(trainer_of):
    class Halves(Regression):
        def training_step(self, batch, batch_idx):
            return self.loss(self.network, slice(batch_idx % 2, None, 2))

    path = path_of(l1())

    trainer_of(path, max_epochs=-1, accumulate_grad_batches=2).fit(Halves(), range(10))

    assert path.result.strengths[0] == pytest.approx(LARGEST, rel=1e-6)


def test_steps_that_do_not_reach_a_weight_count_for_the_mean(trainer_of):
    class Alternating(Regression):
        def training_step(self, batch, batch_idx):
            return self.loss(self.network[batch_idx % 2])

    path = path_of(l1(select="network.0.weight"))

    trainer_of(path, max_epochs=-1).fit(Alternating(network=nn.ModuleList(map(nn.Linear, (5, 5), (1, 1)))), range(6))

    assert path.result.strengths[0] == pytest.approx(LARGEST / 2, rel=1e-6)


def test_two_optimizers_of_manual_optimization_have_one_path(trainer_of):
    class Manual(Regression):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for network, optimizer in zip(self.network, self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(self.loss(network))
                optimizer.step()

        def configure_optimizers(self):
            return [self.make_optimizer(network.parameters()) for network in self.network]

    path = path_of(l1())

    trainer_of(path, max_epochs=-1).fit(Manual(network=nn.ModuleList(map(nn.Linear, (5, 5), (1, 1)))), range(5))

    assert path.result.strengths[0] == pytest.approx(LARGEST, rel=1e-6)
    assert path.result.nonzeros[0] == 0


def deep():
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))


def test_all_layers_of_a_deep_network_are_refused_downwards(trainer_of):
    trainer = trainer_of(path_of(l1()), max_epochs=-1)

    with pytest.raises(MisconfigurationException, match=r"stationary point.*direction='up'"):
        trainer.fit(Regression(network=deep()), range(3))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad])
def test_upwards_a_deep_network_begins_as_it_was(trainer_of, optimizer):
    class Watched(Regression):
        def on_train_epoch_start(self):
            if self.trainer.callbacks[0].penalty.strength < 1:  # the search is over
                self.seen = getattr(self, "seen", None) or [p.detach().clone() for p in self.parameters()]

    path = path_of(l1(), strengths=4, epochs=5, direction="up", smallest=1e-2)
    module = Watched(partial(optimizer, lr=0.01), deep())
    start = [parameter.detach().clone() for parameter in module.parameters()]

    trainer_of(path, max_epochs=-1).fit(module, range(10))

    assert all(map(torch.equal, module.seen, start))
    assert list(path.result.strengths) == sorted(path.result.strengths)
    # So do its optimizers: the strengths alone lead to the same weights.
    alone = path_of(l1(), strengths=path.result.strengths, epochs=5, direction="up")
    trainer_of(alone, max_epochs=-1).fit(Regression(partial(optimizer, lr=0.01), deep()), range(10))
    for index in range(4):
        torch.testing.assert_close(path.result.weights(index), alone.result.weights(index), rtol=0, atol=0)


def test_a_search_that_does_not_settle_says_so(trainer_of, monkeypatch):
    monkeypatch.setattr("lightning_reg.callbacks.path.regularization_path._SEARCH", 10)

    with pytest.warns(UserWarning, match="searched for the largest strength for 10 epochs"):
        trainer_of(path_of(l1()), max_epochs=-1).fit(Regression(partial(torch.optim.SGD, lr=1e-4)), range(1))


def test_noise_of_small_batches_ends_the_search(trainer_of):
    class Noisy(Regression):
        def training_step(self, batch, batch_idx):
            return self.loss(self.network, torch.randperm(60)[:10])

    path = path_of(l1())

    trainer = trainer_of(path, max_epochs=-1)
    trainer.fit(Noisy(partial(torch.optim.SGD, lr=0.1)), range(6))

    assert path.result.strengths[0] == pytest.approx(LARGEST, rel=0.5)
    assert trainer.current_epoch < 200


def test_steps_that_fp16_skips_do_not_count_as_the_first(trainer_of):
    # All layers of a deep network: refused, because the gradient of the first real step is known.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    trainer = trainer_of(path_of(l1()), max_epochs=-1, plugins=MixedPrecision("16-mixed", "cpu", scaler))

    with pytest.raises(MisconfigurationException, match="stationary point"):
        trainer.fit(Regression(network=deep(), dtype=torch.float32), range(30))


def test_half_precision_has_a_strength_that_holds_weights_at_zero(trainer_of):
    path = path_of(l1())

    trainer_of(path, max_epochs=-1, precision="16-true").fit(Regression(dtype=torch.float16), range(3))

    assert path.result.strengths[0] == pytest.approx(LARGEST, rel=0.1)
