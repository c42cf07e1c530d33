"""Sharpness-aware minimization in `step(closure)`: weights climb, and come back before they change."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_reg import KeepZeros, MaxNorm, SpectralConstraint, SpectralNormalization, WeightDecay
from tests.models import Regressor, loader, weights_of
from tests.reference import assert_same_weights

RATE = 0.05


class Sharpness(torch.optim.Optimizer):
    """Sharpness-aware minimization of SGD in `step(closure)`; its ascent has fresh gradients, or old ones."""

    def __init__(self, parameters, lr=RATE, rho=0.05, fresh=True):
        super().__init__(parameters, {"lr": lr})
        self.rho, self.fresh = rho, fresh

    def step(self, closure=None):
        loss = closure() if self.fresh else None
        climbs = []
        with torch.no_grad():
            for weight in (weight for group in self.param_groups for weight in group["params"]):
                if weight.grad is not None:
                    climbs.append((weight, weight.grad * (self.rho / (weight.grad.norm() + 1e-12))))
                    weight.add_(climbs[-1][1])
        loss = closure() if loss is None else (closure(), loss)[1]
        with torch.no_grad():
            for weight, climb in climbs:
                weight.sub_(climb)
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.sub_(weight.grad, alpha=group["lr"])
        return loss


@pytest.mark.parametrize("kind", ["decoupled", "cautious"])
def test_a_step_with_two_gradients_decays_once(fit, kind):
    actual = fit(WeightDecay(0.5, kind=kind), module=Regressor(Sharpness))

    by_hand = Regressor()
    optimizer = Sharpness(by_hand.parameters())
    for _ in range(2):
        for batch in loader():
            before = weights_of(by_hand)

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = by_hand.loss(batch)
                loss.backward()
                return loss

            if kind == "decoupled":
                optimizer.step(decaying(closure, by_hand))
                continue
            optimizer.step(closure)
            with torch.no_grad():
                for name, weight in by_hand.named_parameters():
                    if weight.ndim > 1:
                        kept = (weight - before[name]) * before[name] <= 0
                        weight.sub_(RATE * 0.5 * before[name] * kept)
    torch.testing.assert_close(actual, weights_of(by_hand))


def decaying(closure, module):
    """Return a closure that shrinks matrices right after the first gradient."""
    calls = []

    def run():
        loss = closure()
        calls.append(loss)
        if len(calls) == 1:
            with torch.no_grad():
                for weight in module.parameters():
                    if weight.ndim > 1:
                        weight.mul_(1 - RATE * 0.5)
        return loss

    return run


def climbing(parameters):
    return Sharpness(parameters, fresh=False)


class RestoringSharpness(torch.optim.SGD):
    """Climbs with the gradients at hand, and ends with the step of its base class from the weights that it has kept."""

    @torch.no_grad()
    def step(self, closure):
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.add_(weight.grad, alpha=0.1)
        with torch.enable_grad():
            closure()
        for weight, old in zip(weights, before, strict=True):
            weight.data = old
        return super().step()


class ByHand(Regressor):
    def __init__(self):
        super().__init__(lambda parameters: RestoringSharpness(parameters, lr=RATE))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))

        closure()
        optimizer.step(closure)


@pytest.mark.parametrize("module", [lambda: Regressor(climbing), ByHand], ids=["automatic", "manual"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: WeightDecay(0.5), "WeightDecay"),
        (lambda: SpectralNormalization(0.3), "SpectralNormalization"),
        (lambda: KeepZeros(0), "KeepZeros"),
    ],
    ids=["decay", "normalization", "keep zeros"],
)
def test_an_optimizer_that_climbs_before_its_closure_is_refused_by_callbacks_that_start_a_step(fit, make, name, module):
    with pytest.raises(
        MisconfigurationException, match=f"Sharpness changes weights before it calls its closure.*leave {name} out"
    ):
        fit(make(), module=module())


def test_a_constraint_holds_with_an_optimizer_that_climbs_before_it_has_gradients(fit):
    after = fit(MaxNorm(0.3), module=Regressor(climbing))

    assert after["network.head.weight"].norm(dim=1).max() <= 0.3 * (1 + 1e-6)


def test_a_projection_after_the_step_takes_it(fit):
    torch.optim.SGD([torch.zeros(1)])  # torch calls hooks in a class once it has made an instance

    actual = fit(SpectralConstraint(0.5, select="*.encoder.weight"), module=ByHand(), max_epochs=1)

    module = ByHand()
    weight, optimizer = module.network.encoder.weight, module.configure_optimizers()

    def project():
        u, s, vh = torch.linalg.svd(weight.detach(), full_matrices=False)
        weight.data.copy_((u * s.clamp(max=0.5)) @ vh)

    project()
    for batch in loader():

        def closure(batch=batch):
            optimizer.zero_grad()
            module.loss(batch).backward()

        closure()
        optimizer.step(closure)
        project()
    assert_same_weights(actual, weights_of(module), rtol=1e-4)
