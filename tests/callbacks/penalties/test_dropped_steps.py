"""Where the user drops a batch, nothing is asked of the weights, and no mode of a penalty asks anything either."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_reg import Constant, L1Penalty, TargetSparsity
from tests.models import Gan, Regressor, loader, weights_of
from tests.reference import add_term_gradient, assert_same_weights, matrices

STRENGTH = 0.02
RATE = 0.05


def l1(weights):
    return STRENGTH * sum(weight.abs().sum() for weight in weights)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=RATE)


class Dropping(Regressor):
    """Drops some of the seven batches of an epoch; no loss ever reaches `spare`."""

    def __init__(self, optimizer, dropped):
        super().__init__(optimizer)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.spare = nn.Linear(3, 2)
        self.dropped = dropped


class ByZeroGrad(Dropping):
    def training_step(self, batch, batch_idx):
        self.batch_idx = batch_idx
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        if self.batch_idx in self.dropped:
            self.zero_grad()


class ByLoss(Dropping):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return torch.zeros((), requires_grad=True) if batch_idx in self.dropped else loss


def train_without_dropped(module, window, mode, *, wipes):
    """Minimise the loss with the 1-norm; a batch that is dropped takes the gradients before it along if `wipes`."""
    optimizer, batches = module.configure_optimizers(), list(loader())
    for _ in range(2):
        share = 0.0
        for index, batch in enumerate(batches):
            if index not in module.dropped:
                (module.loss(batch) / window).backward()
                share += 1 / window
            elif wipes:
                module.zero_grad()
                share = 0.0
            if (index + 1) % window == 0 or index + 1 == len(batches):
                step_by_hand(module, optimizer, share, mode)
                share = 0.0
    return weights_of(module)


def step_by_hand(module, optimizer, share, mode):
    if share and mode != "proximal":
        add_term_gradient(l1, matrices(module), share)
    optimizer.step()
    if mode == "proximal":
        for weight in matrices(module):
            weight.data = nn.functional.softshrink(weight.data, RATE * STRENGTH * share)
    module.zero_grad()


DROPPED = [{0, 1, 4}, {2, 3, 6}, {1, 5}]


@pytest.mark.parametrize("kind", [ByZeroGrad, ByLoss])
@pytest.mark.parametrize("dropped", DROPPED, ids=str)
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize(
    ("mode", "optimizer"),
    [("loss", adam), ("grad", adam), ("loss", momentum), ("grad", momentum), ("proximal", sgd)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_mode_is_the_loop_that_leaves_the_batch_out(fit, mode, optimizer, window, dropped, kind):
    actual = fit(L1Penalty(STRENGTH, mode=mode), module=kind(optimizer, dropped), accumulate_grad_batches=window)

    by_hand = train_without_dropped(Dropping(optimizer, dropped), window, mode, wipes=kind is ByZeroGrad)
    assert_same_weights(actual, by_hand, rtol=1e-5)


@pytest.mark.parametrize("kind", [ByZeroGrad, ByLoss])
@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
def test_a_run_of_nothing_but_dropped_batches_leaves_every_weight_as_it_was(fit, mode, kind):
    module = kind(adam, range(7))
    before = weights_of(module)

    after = fit(L1Penalty(10.0, mode=mode), module=module)

    torch.testing.assert_close(after, before, rtol=0, atol=0)


class EverySecond(ByLoss):
    """In fp16 a step needs some gradient that the scaler can check: the first of every two batches has one."""

    def __init__(self):
        super().__init__(sgd, {1, 3, 5})


@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
def test_under_fp16_a_batch_that_reaches_no_weight_brings_no_penalty(fit, mode):
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))

    actual = fit(L1Penalty(STRENGTH, mode=mode), module=EverySecond(), plugins=[plugin], accumulate_grad_batches=2)

    by_hand = train_without_dropped(EverySecond(), 2, mode, wipes=False)
    assert_same_weights(actual, by_hand, rtol=1e-2)
    # Eight steps with half the penalty each; with the whole of it this weight would be smaller by twice as much.
    before = EverySecond().spare.weight
    torch.testing.assert_close(before - actual["spare.weight"], before.sign() * 8 * RATE * STRENGTH / 2)


class IdleGenerator(Gan):
    """Only the critic has a loss, but both step."""

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        self.toggle_optimizer(critic)
        critic.zero_grad()
        self.manual_backward(self.critic_loss(batch))
        self.untoggle_optimizer(critic)
        critic.step()
        generator.step()


@pytest.mark.parametrize(
    "callback",
    [
        L1Penalty(STRENGTH, mode="grad"),
        L1Penalty(STRENGTH, mode="proximal"),
        TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0)),
    ],
    ids=["grad", "proximal", "target"],
)
def test_a_manual_step_without_a_gradient_moves_nothing(trainer_of, callback):
    module = IdleGenerator()
    before = weights_of(module)

    trainer_of(callback).fit(module, loader())

    after = weights_of(module)
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("generator"))
    assert not torch.equal(after["critic.0.weight"], before["critic.0.weight"])


@pytest.mark.parametrize("mode", ["grad", "proximal"])
def test_a_weight_that_no_loss_reaches_has_its_penalty_in_a_manual_step(trainer_of, mode):
    class Spare(Gan):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(3, 2)
            nn.init.constant_(self.spare.weight, 0.5)

        def configure_optimizers(self):
            generator, critic = super().configure_optimizers()
            critic.add_param_group({"params": self.spare.parameters()})
            return [generator, critic]

    module = Spare()
    trainer_of(L1Penalty(0.1, mode=mode), max_epochs=1).fit(module, loader())

    # Seven steps of the critic's SGD, each of lr * strength.
    torch.testing.assert_close(module.spare.weight, torch.full((2, 3), 0.5 - 7 * 0.05 * 0.1))


@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
@pytest.mark.parametrize("window", [1, 2])
def test_gradients_of_the_users_own_backward_are_not_dropped(fit, mode, window):
    class OwnBackward(Dropping):
        """Its loss leads nowhere, but `backward` brings the gradients of the network by another way."""

        def training_step(self, batch, batch_idx):
            self.hidden = self.loss(batch) / window
            return self.hidden.detach().requires_grad_() * window

        def backward(self, loss):
            loss.backward()
            self.hidden.backward()

    actual = fit(L1Penalty(STRENGTH, mode=mode), module=OwnBackward(sgd, ()), accumulate_grad_batches=window)

    assert_same_weights(actual, train_without_dropped(Dropping(sgd, ()), window, mode, wipes=False), rtol=1e-5)
