"""All callbacks that change weights treat unusual training alike: the same errors, warnings and skipped weights."""

import copy

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_reg import Constant, L1Penalty, SpectralConstraint, SpectralNormalization, TargetSparsity, WeightDecay
from tests.models import Gan, RawManualSteps, Regressor, loader, weights_of

BOUND = 0.4
CALLBACKS = {
    "grad": lambda: L1Penalty(0.05, mode="grad"),
    "proximal": lambda: L1Penalty(0.05, mode="proximal"),
    "target": lambda: TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0)),
    "normalization": lambda: SpectralNormalization(BOUND, norm="matrix"),
    "constraint": lambda: SpectralConstraint(BOUND),
    "decay": lambda: WeightDecay(0.5),
    "cautious decay": lambda: WeightDecay(0.5, kind="cautious"),
}
every_callback = pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
# These act inside `Optimizer.step`, whoever calls it.
every_hook = pytest.mark.parametrize("make", list(CALLBACKS.values())[1:], ids=list(CALLBACKS)[1:])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


class Sharpness(torch.optim.SGD):
    """Sharpness-aware minimization, with its two steps as methods beside `step`."""

    @torch.no_grad()
    def first_step(self):
        self.start = [weight.clone() for group in self.param_groups for weight in group["params"]]
        for group in self.param_groups:
            for weight in group["params"]:
                weight.add_(weight.grad, alpha=0.01)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for weight, start in zip(weights, self.start, strict=True):
            weight.copy_(start - 0.05 * weight.grad)
        self.zero_grad()


def sharpness(parameters):
    return Sharpness(parameters, lr=0.05)


class ManualSharpness(Regressor):
    plain_backward = False

    def __init__(self):
        super().__init__(sharpness)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for step in (optimizer.first_step, optimizer.second_step):
            loss = self.loss(batch)
            if self.plain_backward:
                loss.backward()
            else:
                self.manual_backward(loss)
            step()


class PlainBackward(ManualSharpness):
    plain_backward = True


class AutomaticSharpness(Regressor):
    def __init__(self):
        super().__init__(sharpness)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.optimizer.first_step()
        optimizer_closure()
        optimizer.optimizer.second_step()


@every_callback
@pytest.mark.parametrize("kind", [ManualSharpness, PlainBackward, AutomaticSharpness])
def test_steps_beside_step_are_refused_with_the_remedy(fit, make, kind):
    message = r"has seen no optimizer step.*SAM's `first_step`.*`step\(closure"
    with pytest.raises(MisconfigurationException, match=message):
        fit(make(), module=kind())


class HalfSeen(Gan):
    """The critic steps as Lightning has it, the generator beside `step`."""

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        self.toggle_optimizer(critic)
        critic.zero_grad()
        self.manual_backward(self.critic_loss(batch))
        critic.step()
        self.untoggle_optimizer(critic)
        self.toggle_optimizer(generator)
        for step in (generator.first_step, generator.second_step):
            self.manual_backward(self.generator_loss(batch))
            step()
        self.untoggle_optimizer(generator)

    def configure_optimizers(self):
        return [sharpness(self.generator.parameters()), sgd(self.critic.parameters())]


@every_callback
def test_one_of_two_optimizers_that_bypasses_it_is_refused_by_name(fit, make):
    with pytest.raises(MisconfigurationException, match="has seen no step of Sharpness"):
        fit(make(), module=HalfSeen())


class LateGenerator(Gan):
    """The generator rests in the first epoch."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx if self.current_epoch else 0)


@every_callback
def test_an_optimizer_that_rests_for_an_epoch_is_allowed(fit, make):
    module = LateGenerator()
    before = weights_of(module)

    fit(make(), module=module)

    assert not torch.equal(before["generator.0.weight"], module.generator[0].weight)


class RawSteps(Regressor):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.optimizer.step(closure=optimizer_closure)


@every_hook
@pytest.mark.parametrize("kind", [RawSteps, RawManualSteps])
def test_steps_of_the_plain_optimizer_are_steps(fit, make, kind):
    actual = fit(make(), module=kind(sgd))

    torch.testing.assert_close(actual, fit(make(), module=Regressor(sgd)), rtol=0, atol=0)


@pytest.mark.parametrize("window", [1, 3])
def test_proximal_steps_follow_plain_ones_with_the_share_of_a_short_window(fit, window):
    actual = fit(L1Penalty(0.05, mode="proximal"), module=RawSteps(sgd), accumulate_grad_batches=window)

    by_hand = Regressor(sgd)
    optimizer, batches = by_hand.configure_optimizers(), list(loader())
    for _ in range(2):
        for start in range(0, len(batches), window):
            part = batches[start : start + window]
            for batch in part:
                (by_hand.loss(batch) / window).backward()
            optimizer.step()
            by_hand.zero_grad()
            for weight in by_hand.parameters():
                if weight.ndim > 1:
                    weight.data = nn.functional.softshrink(weight.data, 0.05 * 0.05 * len(part) / window)
    torch.testing.assert_close(actual, weights_of(by_hand))


@pytest.mark.parametrize("kind", [RawSteps, RawManualSteps])
def test_steps_of_the_plain_optimizer_are_refused_if_gradients_come_too_late(fit, kind):
    with pytest.raises(MisconfigurationException, match="has seen no optimizer step"):
        fit(L1Penalty(0.05, mode="grad"), module=kind(sgd))


@every_callback
def test_an_epoch_in_which_the_scaler_skips_every_step_is_allowed(fit, make):
    class Overflowing(Regressor):
        def loss(self, batch):
            return super().loss(batch) * 1e38

    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))

    fit(make(), module=Overflowing(sgd), plugins=[plugin])  # warnings are errors, and so is a refusal


class Distilling(Regressor):
    """Learns from a teacher that no optimizer holds, and keeps a moving average of itself."""

    def __init__(self):
        super().__init__(sgd)
        torch.manual_seed(4)
        self.teacher = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 2)))
        self.average = copy.deepcopy(self.network)

    def loss(self, batch):
        with torch.no_grad():
            targets = self.teacher(batch[0]) + self.average(batch[0])
        return nn.functional.mse_loss(self.network(batch[0]), targets)

    def configure_optimizers(self):
        return sgd(self.network.parameters())


@pytest.mark.parametrize("make", [lambda: L1Penalty(0.05), *CALLBACKS.values()], ids=["loss", *CALLBACKS])
def test_weights_that_no_optimizer_holds_are_left_alone(fit, make):
    module = Distilling()
    before = weights_of(module)

    after = fit(make(), module=module)

    for name in before:
        assert torch.equal(after[name], before[name]) != name.startswith("network"), name


class Growing(Regressor):
    """Has another layer from the second epoch on, in place of the head."""

    def __init__(self):
        super().__init__(sgd)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            torch.manual_seed(5)
            self.network.head = nn.Linear(21, 2)
            self.optimizers().add_param_group({"params": self.network.head.parameters()})


TREATMENTS = {
    "loss": (lambda: L1Penalty(0.05), "penalized by L1Penalty"),
    "grad": (CALLBACKS["grad"], "penalized by L1Penalty"),
    "proximal": (CALLBACKS["proximal"], "penalized by L1Penalty"),
    "target": (CALLBACKS["target"], "penalized by L1Penalty"),
    "normalization": (CALLBACKS["normalization"], "controlled by SpectralNormalization"),
    "constraint": (CALLBACKS["constraint"], "controlled by SpectralConstraint"),
    "decay": (CALLBACKS["decay"], "decayed by WeightDecay"),
}


@pytest.mark.parametrize(("make", "treatment"), TREATMENTS.values(), ids=TREATMENTS)
def test_layers_that_join_in_mid_run_warn(fit, make, treatment):
    with pytest.warns(UserWarning, match=f"join an optimizer after training has begun are not {treatment}. Create"):
        fit(make(), module=Growing())


class NewOptimizers(Regressor):
    """Starts the second epoch with a new optimizer; without momentum, that changes nothing."""

    def __init__(self, second=sgd):
        super().__init__(sgd)
        self.second = second

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.trainer.strategy.optimizers = [self.second(self.parameters())]


@every_callback
def test_new_optimizers_in_mid_run_are_followed(fit, make):
    actual = fit(make(), module=NewOptimizers())

    torch.testing.assert_close(actual, fit(make(), module=Regressor(sgd)), rtol=0, atol=0)


def test_a_new_optimizer_of_unknown_step_sizes_is_refused_in_proximal_mode(fit):
    module = NewOptimizers(lambda parameters: torch.optim.ASGD(parameters, lr=0.05))

    with pytest.raises(MisconfigurationException, match="must know how far ASGD moves each weight"):
        fit(L1Penalty(0.05, mode="proximal"), module=module)


def test_a_new_optimizer_with_a_decay_of_its_own_is_refused_beside_weight_decay(fit):
    module = NewOptimizers(lambda parameters: torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1))

    with pytest.raises(MisconfigurationException, match="The weight would decay twice"):
        fit(WeightDecay(0.5), module=module)
