"""`mode="proximal"` against the loop written by hand: the optimizer's step, then the operator of the step size."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from scipy.optimize import brentq
from torch import nn

from lightning_reg import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, L2Penalty, Linear, MCPPenalty
from lightning_reg.callbacks.penalties import proximal_step
from tests.models import Gan, Regressor, loader, weights_of
from tests.reference import assert_same_weights, matrices, scaled, steps_of_gan


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def step_size(optimizer, weight):
    """Return the step size of SGD with momentum 0.9, or of Adam, for one weight."""
    (group,) = optimizer.param_groups
    if isinstance(optimizer, torch.optim.SGD):
        return torch.full_like(weight, group["lr"] / 0.1)
    state = optimizer.state[weight]
    return group["lr"] / ((state["exp_avg_sq"] / (1 - 0.999 ** state["step"].item())).sqrt() + 1e-8)


def soften(weight, threshold):
    return weight.sign() * (weight.abs() - threshold).clamp(min=0)


def shrink_groups(weight, threshold):
    """Solve for the norm of each row by bisection."""
    result = torch.zeros_like(weight)
    flat, bounds = weight.double().flatten(1), threshold.double().flatten(1) * math.sqrt(weight[0].numel())
    for row, (entries, bound) in enumerate(zip(flat, bounds, strict=True)):
        if (entries / bound).norm() > 1:
            norm = brentq(
                lambda r, w=entries, d=bound: (w / (r + d)).square().sum().item() - 1, 0, entries.norm(), xtol=1e-14
            )
            result[row] = (entries * norm / (norm + bound)).view(weight[row].shape).to(weight.dtype)
    return result


@dataclass(frozen=True)
class Cheapest:
    """Return the best of all candidate minima of the objective of MCP, for each entry."""

    strength: float
    gamma: float

    def __call__(self, weight, size):
        bound = self.gamma * self.strength
        slope = 1 - size / self.gamma
        inner = weight.sign() * ((weight.abs() - size * self.strength) / slope).clamp(0, bound)
        points = torch.stack([torch.zeros_like(weight), weight, torch.where(slope > 0, inner, weight)]).double()
        moduli = points.abs()
        penalty = torch.where(
            moduli <= bound, self.strength * moduli - moduli**2 / (2 * self.gamma), self.gamma * self.strength**2 / 2
        )
        costs = (points - weight).square() / 2 + size * penalty
        return points.gather(0, costs.argmin(0, keepdim=True))[0].to(weight.dtype)

    def at(self, factor):
        return Cheapest(self.strength * factor, self.gamma)


# Each penalty, with its operator for a factor of the shape of the weight.
PENALTIES = {
    "l1": (lambda **kwargs: L1Penalty(0.02, **kwargs), lambda w, f: soften(w, 0.02 * f)),
    "l2": (lambda **kwargs: L2Penalty(0.03, **kwargs), lambda w, f: w / (1 + 0.06 * f)),
    "elastic_net": (
        lambda **kwargs: ElasticNetPenalty(0.05, 0.3, **kwargs),
        lambda w, f: soften(w, 0.015 * f) / (1 + 0.035 * f),
    ),
    "mcp": (lambda **kwargs: MCPPenalty(0.05, 3.0, **kwargs), Cheapest(0.05, 3.0)),
    "group_lasso": (lambda **kwargs: GroupLassoPenalty(0.02, **kwargs), lambda w, f: shrink_groups(w, 0.02 * f)),
}
every_penalty = pytest.mark.parametrize("name", PENALTIES)
both_optimizers = pytest.mark.parametrize("optimizer", [sgd, adam])


def train_with_operator(  # noqa: PLR0913  # everything a training loop may do
    module, batches, operator, *, accumulate=1, factor=lambda step: 1.0, scaler=None, autocast=None
):
    """Train two epochs; return the weights."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    optimizer = module.configure_optimizers()
    batches = list(batches)
    step = 0
    for _ in range(2):
        for index, batch in enumerate(batches):
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = module.loss(batch)
            scaler.scale(loss / accumulate).backward()
            if (index + 1) % accumulate and index + 1 < len(batches):
                continue
            for weight in matrices(module):
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if scaler.get_scale() >= before:  # not skipped
                share = (index % accumulate + 1) / accumulate
                with torch.no_grad():
                    for weight in matrices(module):
                        weight.copy_(scaled(operator, factor(step))(weight, share * step_size(optimizer, weight)))
            step += 1
    return weights_of(module)


def assert_same_zeros(actual, expected):
    for name, weight in expected.items():
        assert torch.equal(actual[name] == 0, weight == 0), name


@every_penalty
@both_optimizers
@pytest.mark.parametrize("accumulate", [1, 3])  # 3 of 7 batches: the last window has one
def test_it_equals_the_loop(fit, name, optimizer, accumulate):
    make, operator = PENALTIES[name]

    actual = fit(make(mode="proximal"), module=Regressor(optimizer), accumulate_grad_batches=accumulate)

    expected = train_with_operator(Regressor(optimizer), loader(), operator, accumulate=accumulate)
    assert_same_weights(actual, expected, rtol=1e-5)
    assert_same_zeros(actual, expected)


@both_optimizers
def test_large_weights_are_worked_on_in_parts(fit, optimizer, monkeypatch):
    make, operator = PENALTIES["elastic_net"]
    monkeypatch.setattr(proximal_step, "_CPU_ENTRIES", 8)

    actual = fit(make(mode="proximal"), module=Regressor(optimizer))

    assert_same_weights(actual, train_with_operator(Regressor(optimizer), loader(), operator), rtol=1e-5)


@every_penalty
@both_optimizers
def test_fp16_with_a_gradient_scaler(fit, name, optimizer):
    make, operator = PENALTIES[name]
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))

    actual = fit(make(mode="proximal"), module=Regressor(optimizer), plugins=[plugin], accumulate_grad_batches=3)

    expected = train_with_operator(
        Regressor(optimizer),
        loader(),
        operator,
        accumulate=3,
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0),
        autocast=torch.float16,
    )
    assert_same_weights(actual, expected, rtol=1e-5)
    assert_same_zeros(actual, expected)


class Overflowing(Regressor):
    """The first batch, and every third after it, has a loss whose gradient overflows."""

    def loss(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return super().loss(batch) * (1e38 if self.calls % 3 == 1 else 1.0)


@pytest.mark.parametrize("name", ["elastic_net", "group_lasso"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_shrinks_nothing(fit, name, fused):
    make, operator = PENALTIES[name]

    def optimizer(parameters, fused=fused):
        return torch.optim.Adam(parameters, lr=0.02, fused=fused)

    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    actual = fit(make(mode="proximal"), module=Overflowing(optimizer), plugins=[plugin])

    expected = train_with_operator(
        Overflowing(lambda parameters: optimizer(parameters, fused=False)),
        loader(),
        operator,
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0),
        autocast=torch.float16,
    )
    assert_same_weights(actual, expected, rtol=1e-5)
    assert_same_zeros(actual, expected)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_a_loss_shrinks_nothing(fit):
    class Silent(Regressor):
        def training_step(self, batch, batch_idx):
            return None

    module = Silent(sgd)
    before = weights_of(module)

    fit(L1Penalty(0.1, mode="proximal"), module=module)

    torch.testing.assert_close(weights_of(module), before, rtol=0, atol=0)


@both_optimizers
def test_a_schedule_goes_with_the_steps(fit, optimizer):
    make, operator = PENALTIES["l1"]

    actual = fit(make(mode="proximal", schedule=Linear(0.0, 2.0, 10)), module=Regressor(optimizer))

    by_hand = train_with_operator(Regressor(optimizer), loader(), operator, factor=lambda step: min(step / 10, 1) * 2)
    assert_same_weights(actual, by_hand, rtol=1e-5)


def test_the_decay_of_adamw_stays(fit):
    def adamw(parameters):
        return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.5)

    actual = fit(L1Penalty(0.02, mode="proximal"), module=Regressor(adamw))

    assert_same_weights(actual, train_with_operator(Regressor(adamw), loader(), PENALTIES["l1"][1]), rtol=1e-5)


class Words(Regressor):
    """An embedding with a row that no batch reaches, convolutions, and a head."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        torch.manual_seed(0)
        self.embedding, self.conv, self.head = nn.Embedding(9, 6), nn.Conv1d(6, 8, 3, padding=1), nn.Linear(8, 2)
        del self.network

    def loss(self, batch):
        inputs, targets = batch
        tokens = (inputs * 2 + 4).long().clamp(0, 7)
        hidden = torch.relu(self.conv(self.embedding(tokens).mT))
        return nn.functional.mse_loss(self.head(hidden.mean(-1)), targets)


@pytest.mark.parametrize("penalty", [L1Penalty(0.01, mode="proximal"), GroupLassoPenalty(0.02, mode="proximal")])
def test_embeddings_and_convolutions_get_zeros_and_the_objective_falls(fit, penalty):
    module = Words(adam)

    def objective():
        with torch.no_grad():
            data_loss = sum(module.loss(batch) for batch in loader()) / 7
            return (data_loss + penalty.strength * penalty.penalty(matrices(module))).item()

    before = objective()
    fit(copy.deepcopy(penalty), module=module, accumulate_grad_batches=2, max_epochs=40)

    assert objective() < before / 2
    for weight in (module.embedding.weight, module.conv.weight, module.head.weight):
        assert (weight == 0).any()
        assert not torch.signbit(weight[weight == 0]).any()
    assert (module.embedding.weight[8] == 0).all()  # of a row without data the penalty alone remains
    assert module.loss(next(iter(loader()))).isfinite()


def test_each_network_of_a_gan_shrinks_with_its_own_steps(trainer_of):
    module = Gan()
    trainer_of(L1Penalty(0.01, mode="proximal")).fit(module, loader())

    by_hand = Gan()
    for _, optimizer, network, loss in steps_of_gan(by_hand):
        by_hand.zero_grad()
        loss().backward()
        optimizer.step()
        with torch.no_grad():
            for weight in matrices(network):
                size = 0.05 if network is by_hand.critic else step_size(optimizer, weight)
                weight.copy_(soften(weight, 0.01 * size))
    assert_same_weights(weights_of(module), weights_of(by_hand), rtol=1e-5)
    assert_same_zeros(weights_of(module), weights_of(by_hand))


@pytest.mark.parametrize("penalty", [L1Penalty(0.02, mode="proximal"), GroupLassoPenalty(0.03, mode="proximal")])
@both_optimizers
def test_weights_in_bfloat16_get_exact_zeros(fit, penalty, optimizer):
    weights = fit(
        copy.deepcopy(penalty), module=Regressor(optimizer), data=loader(dtype=torch.bfloat16), precision="bf16-true"
    )

    assert weights["network.encoder.weight"].dtype == torch.bfloat16
    assert 0 < sum((weight == 0).sum() for weight in weights.values() if weight.ndim > 1) < 86


def test_optimizers_are_left_as_they_were(trainer_of):
    module = Regressor(sgd)
    trainer = trainer_of(L1Penalty(1.0, mode="proximal"))
    trainer.fit(module, loader())
    (optimizer,) = trainer.optimizers
    before = weights_of(module)

    for group in optimizer.param_groups:
        group["lr"] = 1e-30
    module.loss(next(iter(loader()))).backward()
    optimizer.step()
    module.network.encoder.weight.data.add_(1.0)
    optimizer.step()

    assert (module.network.encoder.weight != 0).all()
    assert (before["network.encoder.weight"] == 0).any()
