"""Weight decay against the optimizers that have it themselves, and against loops by hand."""

import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg import Cosine, L1Penalty, Linear, RegularizationMonitor, Select, SpectralNormalization, WeightDecay
from lightning_reg.metrics import WeightNorm
from tests.callbacks.penalties.test_resume import PowerCutError, StopBefore
from tests.event_files import scalars, texts
from tests.models import Gan, Regressor, Silent, loader, weights_of
from tests.reference import matrices

DECAY = 0.3
KINDS = ["decoupled", "independent", "corrected", "cautious"]


def split(parameters, decay):
    """Return matrices and the rest as parameter groups, of which one is decayed."""
    parameters = list(parameters)
    return [
        {"params": [weight for weight in parameters if weight.ndim >= 2], "weight_decay": decay},
        {"params": [weight for weight in parameters if weight.ndim < 2], "weight_decay": 0.0},
    ]


def warm_up_and_cosine(step):
    return min(1.0, step / 3) * (1 + math.cos(math.pi * min(step / 14, 1))) / 2


class Scheduled(Regressor):
    """Trains by an optimizer whose rate changes each step."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_cosine)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


OPTIMIZERS = {
    "adam": (
        lambda parameters: torch.optim.Adam(parameters, lr=0.02),
        lambda parameters: torch.optim.AdamW(split(parameters, DECAY), lr=0.02),
    ),
    "one by one": (
        lambda parameters: torch.optim.Adam(parameters, lr=0.02, foreach=False),
        lambda parameters: torch.optim.AdamW(split(parameters, DECAY), lr=0.02, foreach=False),
    ),
    "fused": (
        lambda parameters: torch.optim.Adam(parameters, lr=0.02, fused=True),
        lambda parameters: torch.optim.AdamW(split(parameters, DECAY), lr=0.02, fused=True),
    ),
    "nadam": (
        lambda parameters: torch.optim.NAdam(parameters, lr=0.02),
        lambda parameters: torch.optim.NAdam(split(parameters, DECAY), lr=0.02, decoupled_weight_decay=True),
    ),
    "two rates": (
        lambda parameters: torch.optim.Adam([group | {"lr": rate} for group, rate in rated(parameters, 0.0)]),
        lambda parameters: torch.optim.AdamW([group | {"lr": rate} for group, rate in rated(parameters, DECAY)]),
    ),
}


def rated(parameters, decay):
    """Return every matrix as a group of its own, each with another rate; vectors decay nowhere."""
    groups = [{"params": [weight], "weight_decay": decay if weight.ndim >= 2 else 0.0} for weight in parameters]
    return [(group, 0.01 * (1 + index)) for index, group in enumerate(groups)]


SETTINGS = {
    "plain": {},
    "a short last window": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.1},
    "clipping by value, accumulation": {
        "gradient_clip_val": 0.05,
        "gradient_clip_algorithm": "value",
        "accumulate_grad_batches": 2,
    },
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("module", [Regressor, Scheduled])
def test_an_optimizer_without_decay_becomes_the_one_with_it(fit, optimizer, settings, module):
    if optimizer == "fused" and "clipping" in settings:
        pytest.skip("Lightning refuses to clip for fused optimizers")
    plain, decaying = OPTIMIZERS[optimizer]

    actual = fit(WeightDecay(DECAY), module=module(plain), **SETTINGS[settings])

    assert_equal(actual, fit(module=module(decaying), **SETTINGS[settings]))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_of_fp16_skips_decay_nothing(fit, fused):
    def train(optimizer, *callbacks):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)  # the first steps overflow
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        return fit(*callbacks, module=Regressor(optimizer), plugins=plugin, max_epochs=8)

    actual = train(lambda parameters: torch.optim.Adam(parameters, lr=0.02, fused=fused), WeightDecay(DECAY))
    expected = train(lambda parameters: torch.optim.AdamW(split(parameters, DECAY), lr=0.02, fused=fused))

    assert_equal(actual, expected)
    assert not torch.equal(actual["network.head.weight"], weights_of(Regressor())["network.head.weight"])


def test_each_network_of_a_gan_decays_in_its_own_steps(fit):
    actual = fit(WeightDecay(DECAY, select="generator.*"), module=Gan())

    class Decaying(Gan):
        def configure_optimizers(self):
            _, critic = super().configure_optimizers()
            return [torch.optim.AdamW(split(self.generator.parameters(), DECAY), lr=0.01), critic]

    assert_equal(actual, fit(module=Decaying()))


class Lion(torch.optim.Optimizer):
    """The sign of a momentum: an optimizer that this package has not heard of."""

    def __init__(self, parameters, lr=0.003, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_((0.9 * momentum + 0.1 * weight.grad).sign(), alpha=group["lr"])
                momentum.lerp_(weight.grad, 0.01)
        return loss


def test_lion(fit):
    actual = fit(WeightDecay(DECAY), module=Regressor(Lion))

    assert_equal(actual, fit(module=Regressor(lambda parameters: Lion(split(parameters, DECAY)))))


class Linears(Regressor):
    """Has matrices alone, as Muon wants them."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.network = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 2, bias=False))
        torch.manual_seed(0)
        for weight in self.network.parameters():
            nn.init.normal_(weight)


def test_muon(fit):
    actual = fit(
        WeightDecay(DECAY), module=Linears(lambda parameters: torch.optim.Muon(parameters, lr=0.02, weight_decay=0.0))
    )

    expected = fit(module=Linears(lambda parameters: torch.optim.Muon(parameters, lr=0.02, weight_decay=DECAY)))
    assert_equal(actual, expected)


def decay_by_hand(module, kind, *, epochs=2, factor=lambda step: 1.0):
    """Train by SGD with momentum and a changing rate, decaying matrices by the formula of `kind`."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    largest = 0.0
    for step, batch in enumerate([*loader()] * epochs):
        rate = 0.05 * warm_up_and_cosine(step)
        largest = max(largest, rate)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        module.loss(batch).backward()
        with torch.no_grad():
            before = [weight.clone() for weight in matrices(module)]
            value = DECAY * factor(step)
            share = {
                "decoupled": rate * value,
                "independent": rate / 0.05 * value,
                "corrected": rate * (rate / largest if largest else 0.0) * value,
                "cautious": 0.0,
            }[kind]
            for weight in matrices(module):
                weight.sub_(share * weight)
            optimizer.step()
            if kind == "cautious":
                for weight, old in zip(matrices(module), before, strict=True):
                    weight.sub_(torch.where((weight - old) * old > 0, 0.0, rate * value * old))
    return weights_of(module)


class SgdScheduled(Scheduled):
    def __init__(self):
        super().__init__()  # momentum SGD with a rate of 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_follows_its_formula(fit, kind):
    assert_equal(fit(WeightDecay(DECAY, kind=kind), module=SgdScheduled()), decay_by_hand(Regressor(), kind))


@pytest.mark.parametrize("kind", ["decoupled", "cautious"])
def test_a_schedule_multiplies_the_decay_step_by_step(fit, kind):
    actual = fit(WeightDecay(DECAY, kind=kind, schedule=Linear(0.0, 1.0, 10)), module=SgdScheduled())

    assert_equal(actual, decay_by_hand(Regressor(), kind, factor=lambda step: min(step / 10, 1)))


def test_dinos_schedule_is_one_line(fit, tmp_path):
    fit(
        WeightDecay(0.4, schedule=Cosine(0.1, 1.0, 1.0)),
        module=Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.5)),
        logger=TensorBoardLogger(tmp_path),
    )

    by_hand = {step: 0.5 * (0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 14)) / 2) for step in range(14)}
    assert scalars(tmp_path)["reg/weight_decay"] == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(trainer_of, tmp_path, kind):
    def train(*callbacks, path=None):
        module = SgdScheduled()
        keep = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1)
        trainer = trainer_of(WeightDecay(DECAY, kind=kind), keep, *callbacks, enable_checkpointing=True)
        trainer.fit(module, loader(), ckpt_path=path)
        return weights_of(module)

    whole = train()
    for old in tmp_path.glob("*.ckpt"):
        old.unlink()
    with pytest.raises(PowerCutError):
        train(StopBefore(9))
    (checkpoint,) = tmp_path.glob("*.ckpt")

    torch.testing.assert_close(train(path=checkpoint), whole, rtol=0, atol=0)


def test_rates_and_their_maxima_survive_a_resume_under_a_constant_rate_that_begins_lower(trainer_of, tmp_path):
    """The optimizer's rate is set by hand, so that only the callback knows the first and the largest one."""

    class Falling(Callback):
        def on_train_batch_start(self, trainer, *_):
            trainer.optimizers[0].param_groups[0]["lr"] = 0.1 / (1 + trainer.global_step)

    def train(kind, *callbacks, path=None):
        module = Regressor()
        keep = ModelCheckpoint(tmp_path / kind, every_n_train_steps=7, save_top_k=-1)
        trainer = trainer_of(WeightDecay(DECAY, kind=kind), Falling(), keep, *callbacks, enable_checkpointing=True)
        trainer.fit(module, loader(), ckpt_path=path)
        return weights_of(module)

    for kind in ("independent", "corrected"):
        whole = train(kind)
        checkpoint = min((tmp_path / kind).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        torch.testing.assert_close(train(kind, path=checkpoint), whole, rtol=0, atol=0)


def test_weights_without_a_gradient_stay(fit):
    class Frozen(Regressor):
        def __init__(self):
            super().__init__(lambda parameters: torch.optim.Adam(parameters, lr=0.02))
            self.unused = nn.Linear(3, 3)
            nn.init.ones_(self.unused.weight)
            self.network.encoder.weight.requires_grad_(requires_grad=False)

    before = weights_of(Frozen())
    after = fit(WeightDecay(DECAY), module=Frozen())

    for name in ("unused.weight", "network.encoder.weight"):
        assert torch.equal(after[name], before[name])


def test_a_compiled_module(fit):
    def make(optimizer):
        module = Silent(optimizer)
        module.network.compile(backend="aot_eager")
        return module

    plain, decaying = OPTIMIZERS["adam"]
    assert_equal(fit(WeightDecay(DECAY), module=make(plain)), fit(module=make(decaying)))


def test_two_callbacks_decay_two_parts_under_names_of_their_own(fit, tmp_path):
    callbacks = [WeightDecay(0.1, select="*.encoder.*"), WeightDecay(0.4, select="*.head.*")]
    actual = fit(*callbacks, logger=TensorBoardLogger(tmp_path))

    logged = scalars(tmp_path)
    assert list(logged["reg/weight_decay"].values()) == pytest.approx([0.05 * 0.1] * 14)
    assert list(logged["reg/weight_decay-1"].values()) == pytest.approx([0.05 * 0.4] * 14)

    by_hand = Regressor()
    optimizer = by_hand.configure_optimizers()
    for batch in [*loader(), *loader()]:
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        with torch.no_grad():
            by_hand.network.encoder.weight.mul_(1 - 0.05 * 0.1)
            by_hand.network.head.weight.mul_(1 - 0.05 * 0.4)
        optimizer.step()
    assert_equal(actual, weights_of(by_hand))


def test_a_checkpoint_callback_can_watch_it(trainer_of, tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="reg/weight_decay", mode="min", filename="least")
    trainer = trainer_of(WeightDecay(0.1, schedule=Linear(1.0, 0.0, 20)), keep, enable_checkpointing=True)

    trainer.fit(Regressor(), loader())

    assert keep.best_model_score == pytest.approx(0.05 * 0.1 * (1 - 13 / 20))


def test_the_plan_says_how_long_a_weight_would_last(fit, tmp_path):
    fit(
        WeightDecay(0.5, select=Select(exclude="*.conv.*"), kind="independent"),
        logger=TensorBoardLogger(tmp_path),
        accumulate_grad_batches=2,
        max_epochs=3,
    )

    table = texts(tmp_path)["reg/setup_decay/text_summary"]
    # 7 batches are 4 steps, each of which takes half.
    assert "| `network.encoder.weight` | 7 x 5 | independent 0.5, time scale 0.5 epochs |" in table
    assert "| `network.conv.weight` | 3 x 1 x 3 | none: excluded by '*.conv.*' |" in table
    assert "| `network.head.bias` | 2 | none: 1 < 2 dimensions |" in table


@pytest.mark.parametrize(
    ("optimizer", "callbacks", "message"),
    [
        (
            lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
            [WeightDecay(0.1)],
            r"AdamW has weight_decay=0\.01 for 'network\.encoder\.weight', which WeightDecay shrinks too.*Pass"
            r" `weight_decay=0` to AdamW, or leave",
        ),
        (
            lambda parameters: torch.optim.SGD(parameters, lr=0.02, weight_decay=1e-4),
            [WeightDecay(0.1, select="*.head.*")],
            r"SGD has weight_decay=0\.0001 for 'network\.head\.weight'",
        ),
        (torch.optim.LBFGS, [WeightDecay(0.1)], "WeightDecay does not work with LBFGS"),
        (
            lambda parameters: torch.optim.SGD(parameters, lr=0.02),
            [WeightDecay(0.1), WeightDecay(0.2, select="*.head.*", kind="cautious")],
            r"'network\.head\.weight' is decayed by both WeightDecay\(value=0\.1.*exclude",
        ),
    ],
)
def test_double_decay_and_lbfgs_are_refused(fit, optimizer, callbacks, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(*callbacks, module=Regressor(optimizer))


def test_an_optimizer_that_decays_other_weights_is_left_alone(fit):
    def optimizer(parameters):
        return torch.optim.AdamW(split(parameters, DECAY), lr=0.02)

    biases = WeightDecay(DECAY, select=Select(["*.bias", "*.norm.*"], min_ndim=0))
    actual = fit(biases, module=Regressor(optimizer))

    everything = fit(module=Regressor(lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=DECAY)))
    assert_equal(actual, everything)


@pytest.mark.parametrize("decay_first", [False, True])
def test_beside_spectral_normalization_the_decay_is_of_the_weights_beneath(fit, decay_first):
    """As the optimizer's own decay is."""

    def train(optimizer, *callbacks):
        callbacks = [SpectralNormalization(power_iterations=5), *callbacks]
        return fit(*callbacks[:: -1 if decay_first else 1], module=Regressor(optimizer))

    plain, decaying = OPTIMIZERS["adam"]
    assert_equal(train(plain, WeightDecay(DECAY)), train(decaying))


@pytest.mark.parametrize("decay_first", [False, True])
def test_cautious_decay_comes_before_a_proximal_step_whatever_the_order_of_callbacks(fit, decay_first):
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
    callbacks = [WeightDecay(DECAY, kind="cautious"), L1Penalty(0.1, mode="proximal")]
    actual = fit(*callbacks[:: 1 if decay_first else -1], module=Regressor(sgd))

    by_hand = Regressor(sgd)
    optimizer = by_hand.configure_optimizers()
    for batch in [*loader(), *loader()]:
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        with torch.no_grad():
            before = [weight.clone() for weight in matrices(by_hand)]
            optimizer.step()
            for weight, old in zip(matrices(by_hand), before, strict=True):
                weight.sub_(torch.where((weight - old) * old > 0, 0.0, 0.05 * DECAY * old))
                weight.copy_(weight.sign() * (weight.abs() - 0.05 * 0.1).clamp(min=0))
    assert_equal(actual, weights_of(by_hand))


def test_beside_a_proximal_penalty_each_acts_as_by_hand(fit):
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
    actual = fit(WeightDecay(DECAY), L1Penalty(0.1, mode="proximal"), module=Regressor(sgd))

    by_hand = Regressor(sgd)
    optimizer = by_hand.configure_optimizers()
    for batch in [*loader(), *loader()]:
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        with torch.no_grad():
            for weight in matrices(by_hand):
                weight.mul_(1 - 0.05 * DECAY)
            optimizer.step()
            for weight in matrices(by_hand):
                weight.copy_(weight.sign() * (weight.abs() - 0.05 * 0.1).clamp(min=0))
    assert_equal(actual, weights_of(by_hand))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"value": -0.1}, ValueError, "`value` must be a finite number >= 0, got -0.1"),
        ({"value": "0.1"}, TypeError, "`value` must be a number, got '0.1'"),
        ({"value": 0.1, "kind": "l2"}, ValueError, "`kind` must be one of 'decoupled', 'independent', 'corrected'"),
        ({"value": 0.1, "schedule": 3}, TypeError, "schedule"),
        ({"value": 0.1, "select": 3}, TypeError, "include"),
    ],
)
def test_bad_arguments_are_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        WeightDecay(**arguments)


def test_update_and_weight_settle_where_theory_has_them(trainer_of, tmp_path):
    """SGD on a normalized layer: |gradient| / |weight| tends to sqrt(2 lambda / lr) (arXiv 2506.02285)."""
    rate, decay = 0.1, 0.05

    class Normalized(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(200, 1, bias=False)

        def training_step(self, batch, batch_idx):
            return batch @ (self.layer.weight / self.layer.weight.norm()).squeeze()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=rate)

    monitor = RegularizationMonitor(metrics={"weight_norm": WeightNorm()}, updates=True, layout=False)
    callbacks = [WeightDecay(decay), monitor]
    settings = {"max_epochs": 1, "log_every_n_steps": 5, "logger": TensorBoardLogger(tmp_path)}
    trainer_of(*callbacks, **settings).fit(Normalized(), DataLoader(torch.randn(2000, 200), batch_size=None))

    # A step is of gradient and decay, which are orthogonal here.
    ratios = [value for step, value in scalars(tmp_path)["reg/update_ratio_median"].items() if step >= 500]
    by_gradient = [math.sqrt(ratio**2 - (rate * decay) ** 2) / rate for ratio in ratios]
    assert sum(by_gradient) / len(by_gradient) == pytest.approx(math.sqrt(2 * decay / rate), rel=0.05)


def test_steps_that_bypass_it_are_refused(fit):
    class Sam(torch.optim.SGD):
        def first_step(self):
            with torch.no_grad():
                for weight in self.param_groups[0]["params"]:
                    weight.sub_(0.01 * weight.grad)

    class Manual(Regressor):
        def __init__(self):
            super().__init__(lambda parameters: Sam(parameters, lr=0.1))
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))
            self.optimizers(use_pl_optimizer=False).first_step()

    with pytest.raises(MisconfigurationException, match="WeightDecay has seen no optimizer step, so it had no effect"):
        fit(WeightDecay(DECAY), module=Manual())


def test_a_weight_that_joins_an_optimizer_is_named_as_left_alone(fit):
    class Growing(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3 and self.current_epoch == 0:
                self.late = nn.Linear(2, 2)
                self.trainer.optimizers[0].add_param_group({"params": self.late.parameters()})

    with pytest.warns(UserWarning, match="Parameters that join an optimizer .* are not decayed by WeightDecay"):
        fit(WeightDecay(DECAY), module=Growing())
