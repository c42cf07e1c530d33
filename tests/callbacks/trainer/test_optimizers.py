"""Optimizers as other packages shape them, written by hand: callbacks act on their weights, or refuse them."""

import contextlib

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger

from lightning_reg import (
    GroupLassoPenalty,
    KeepZeros,
    L1Penalty,
    L2Penalty,
    MaxNorm,
    NMSparsity,
    RegularizationMonitor,
    SpectralConstraint,
    SpectralNormalization,
    WeightDecay,
    register_step_size,
)
from tests.models import RawManualSteps, Regressor, loader, momentum_sgd, weights_of
from tests.reference import train_by_hand

RATE = 0.05

AFTER_STEPS = {
    "max norm": lambda: MaxNorm(0.3),
    "n of m": lambda: NMSparsity(1, 5, dim=1, select="*.encoder.*"),
    "keep zeros": lambda: KeepZeros(0),
    "clip": lambda: SpectralConstraint(0.3),
    "rescale": lambda: SpectralConstraint(0.3, method="rescale"),
    "normalization": lambda: SpectralNormalization(0.3),
    "decay": lambda: WeightDecay(0.5),
    "cautious decay": lambda: WeightDecay(0.5, kind="cautious"),
    "proximal": lambda: L1Penalty(0.05, mode="proximal"),
    "proximal groups": lambda: GroupLassoPenalty(0.05, mode="proximal"),
}
after_steps = pytest.mark.parametrize("make", AFTER_STEPS.values(), ids=AFTER_STEPS)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


class Releasing(torch.optim.SGD):
    """Frees the gradients inside of `step`, to save memory, as those of HeavyBall do."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.zero_grad()
        return loss


register_step_size(Releasing, lambda weights, states, group: [group["lr"]] * len(weights), elementwise=True)


@after_steps
def test_an_optimizer_that_frees_gradients_in_its_step_trains_as_one_that_keeps_them(fit, make):
    actual = fit(make(), module=Regressor(lambda parameters: Releasing(parameters, lr=RATE)))

    torch.testing.assert_close(actual, fit(make(), module=Regressor(sgd)), rtol=0, atol=0)


def half_way_back(optimizer):
    """Go half the way back to slow weights after every other step, as Lookahead does."""
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        state = optimizer.state[weight]
        state["count"] = state.get("count", 0) + 1
        slow = state.setdefault("slow", weight.detach().clone())
        if state["count"] % 2 == 0:
            slow.lerp_(weight.detach(), 0.5)
            weight.detach().copy_(slow)


class Derived(torch.optim.SGD):
    """Calls the step of its base class, around which torch calls the hooks a second time."""

    def step(self, closure=None):
        loss = super().step(closure)
        half_way_back(self)
        return loss


class ByHand(torch.optim.Optimizer):
    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.sub_(weight.grad, alpha=group["lr"])
        half_way_back(self)
        return loss


for kind in (Derived, ByHand):
    register_step_size(kind, lambda weights, states, group: [group["lr"]] * len(weights), elementwise=True)


@after_steps
@pytest.mark.parametrize("module", [Regressor, RawManualSteps])
def test_a_step_that_calls_the_step_of_its_base_class_is_one_step(fit, make, module):
    sgd([torch.zeros(1, requires_grad=True)])  # torch gives a class its hooks when the first one is made

    actual = fit(make(), module=module(lambda parameters: Derived(parameters, lr=RATE)))

    expected = fit(make(), module=module(lambda parameters: ByHand(parameters, {"lr": RATE})))
    torch.testing.assert_close(actual, expected)


def test_after_an_error_inside_of_a_step_the_next_batch_has_its_step(fit):
    class Failing(torch.optim.SGD):
        failures = 1

        def step(self, closure=None):
            loss = super().step(closure)
            if self.failures:
                self.failures -= 1
                raise FloatingPointError
            return loss

    class Catching(Regressor):
        def optimizer_step(self, *args):
            with contextlib.suppress(FloatingPointError):
                super().optimizer_step(*args)

    after = fit(MaxNorm(0.3), module=Catching(lambda parameters: Failing(parameters, lr=RATE)))

    assert after["network.head.weight"].norm(dim=1).max() <= 0.3 * (1 + 1e-6)


class ScheduleFree(torch.optim.Optimizer):
    """Trains y, between the iterate z and the mean x of all z, and evaluates x (Defazio et al., 2024)."""

    def __init__(self, parameters, lr=RATE, momentum=0.9):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "count": 0, "trains": True})

    def train(self):
        self._exchange(trains=True)

    def eval(self):
        self._exchange(trains=False)

    @torch.no_grad()
    def _exchange(self, *, trains):
        for group in self.param_groups:
            share = 1 - group["momentum"] if trains else 1 - 1 / group["momentum"]
            for weight in group["params"] if group["trains"] != trains else ():
                if "z" in self.state[weight]:
                    weight.lerp_(self.state[weight]["z"], share)
            group["trains"] = trains

    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                group["count"] += 1
                for weight in group["params"]:
                    z = self.state[weight].setdefault("z", weight.clone())
                    weight.lerp_(z, 1 / group["count"])
                    weight.sub_(weight.grad, alpha=group["lr"] * (1 - group["momentum"] * (1 - 1 / group["count"])))
                    z.sub_(weight.grad, alpha=group["lr"])
        return loss


register_step_size(ScheduleFree, lambda weights, states, group: [group["lr"]] * len(weights), elementwise=True)


class Evaluating(Regressor):
    """Leaves the weights that are to be evaluated."""

    def on_train_epoch_start(self):
        self.optimizers().optimizer.train()

    def on_train_end(self):
        self.optimizers().optimizer.eval()


@after_steps
def test_an_optimizer_that_evaluates_other_weights_than_it_trains_is_refused(fit, make):
    module = Evaluating(ScheduleFree)
    before = weights_of(module)

    with pytest.raises(MisconfigurationException, match=r"does not work with ScheduleFree, .*exchange two versions"):
        fit(make(), module=module)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(module).items())


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_a_penalty_is_in_the_objective_of_a_schedule_free_optimizer(fit, mode):
    actual = fit(L2Penalty(0.3, mode=mode), module=Evaluating(ScheduleFree))

    by_hand = Regressor()
    optimizer = ScheduleFree(by_hand.parameters())
    by_hand.optimizer_factory = lambda _: optimizer
    train_by_hand(by_hand, loader(), lambda weights: 0.3 * sum(weight.square().sum() for weight in weights))
    optimizer.eval()
    torch.testing.assert_close(actual, weights_of(by_hand))


def test_weights_of_another_optimizer_are_not_refused(fit):
    class Two(Regressor):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            network = self.network
            rest = [*network.norm.parameters(), *network.conv.parameters(), *network.head.parameters()]
            return sgd(network.encoder.parameters()), ScheduleFree(rest)

    after = fit(MaxNorm(0.3, select="*.encoder.*"), module=Two())

    assert after["network.encoder.weight"].norm(dim=1).max() <= 0.3 * (1 + 1e-6)


class InBackward(Regressor):
    """Steps as soon as a weight has its gradient, and frees it; the optimizer that Lightning knows finds none."""

    def configure_optimizers(self):
        def step(weight):
            with torch.no_grad():
                weight.sub_(weight.grad, alpha=RATE)
            weight.grad = None

        for weight in self.parameters():
            weight.register_post_accumulate_grad_hook(step)
        return sgd(self.parameters())


@after_steps
def test_steps_inside_of_the_backward_pass_are_refused(fit, make):
    with pytest.raises(MisconfigurationException, match=r"has seen no optimizer step.*inside of the backward pass"):
        fit(make(), module=InBackward())


def test_a_gradient_that_is_added_too_late_is_refused(fit):
    with pytest.raises(MisconfigurationException, match=r"has seen no optimizer step.*inside of the backward pass"):
        fit(L2Penalty(0.1, mode="grad"), module=InBackward())


class Wrapper(torch.optim.Optimizer):
    """Holds another optimizer, and does not call `Optimizer.__init__`, as some Lookaheads do."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state
        self.defaults = optimizer.defaults

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.parametrize("make", list(AFTER_STEPS.values())[:8], ids=list(AFTER_STEPS)[:8])
def test_an_incomplete_optimizer_is_refused_by_name(fit, make):
    with pytest.raises(MisconfigurationException, match=r"Wrapper .*does not call `Optimizer.__init__`"):
        fit(make(), module=Regressor(lambda parameters: Wrapper(momentum_sgd(parameters))))


class Relative(torch.optim.Optimizer):
    """Finds its rate itself, as Adafactor does with `lr=None`."""

    def __init__(self, parameters, **defaults):
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(weight.grad, alpha=RATE)
        return loss


@pytest.mark.parametrize("defaults", [{"lr": None}, {}], ids=["none", "absent"])
def test_decay_needs_a_rate_and_says_so(fit, defaults):
    with pytest.raises(MisconfigurationException, match=r"takes the learning rate from `lr`.*Relative has none for"):
        fit(WeightDecay(0.5), module=Regressor(lambda parameters: Relative(parameters, **defaults)))


@pytest.mark.parametrize("defaults", [{"lr": None}, {}], ids=["none", "absent"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.filterwarnings("ignore:.* and the optimizer's weight_decay")
def test_callbacks_that_need_no_rate_do_without(fit, tmp_path, defaults, decay):
    module = Regressor(lambda parameters: Relative(parameters, weight_decay=decay, **defaults))
    plain = fit(module=Regressor(sgd))

    monitored = fit(RegularizationMonitor(updates=True), L2Penalty(0.0), module=module, logger=CSVLogger(tmp_path))

    torch.testing.assert_close(monitored, plain)


class Finding(torch.optim.Optimizer):
    """Multiplies `lr` by a rate that it finds during training, as Prodigy and D-Adaptation do."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0, "d": 0.01, "growth_rate": 1.2})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(weight.grad, alpha=group["lr"] * group["d"])
            group["d"] *= group["growth_rate"]
        return loss


@pytest.mark.parametrize("kind", ["decoupled", "corrected", "independent"])
def test_decay_takes_the_rate_that_the_optimizer_finds(fit, kind):
    class Still(Regressor):
        def loss(self, batch):
            return 0.0 * super().loss(batch)

    module = Still(Finding)
    before = weights_of(module)["network.head.weight"]

    after = fit(WeightDecay(0.3, kind=kind), module=module)["network.head.weight"]

    left = 1.0
    for step in range(14):
        left *= 1 - 0.3 * (1 if kind == "independent" else 0.01 * 1.2**step)
    torch.testing.assert_close(after, before * left)
