"""A target of zeros is met, whatever the optimizer and the model; and what is logged is true."""

import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_reg import (
    Constant,
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    Linear,
    TargetSparsity,
)
from lightning_reg.callbacks.penalties import quota
from tests.callbacks.penalties.test_resume import interrupt_and_resume  # noqa: F401  # a fixture
from tests.models import Gan, Quartic, Regressor, loader, weights_of
from tests.reference import assert_same_weights, matrices


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def zero_share(weights, dim=None):
    if dim is None:
        units = [weight.flatten() == 0 for weight in weights]
    else:
        units = [(weight.transpose(0, dim).flatten(1) == 0).all(1) for weight in weights]
    return torch.cat(units).float().mean().item()


class Digits(LightningModule):
    def __init__(self, lr=3e-3):
        super().__init__()
        self.lr = lr
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        images, digits = batch
        return nn.functional.cross_entropy(self.network(images), digits)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def digits():
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, train_size=1344, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, split)
    return TensorDataset(train_images.float(), train_labels), (test_images.float(), test_labels)


def test_a_small_network_loses_little_accuracy_at_targets_up_to_95_percent(trainer_of):
    training, (images, labels) = digits()
    accuracy = {}
    for target in (None, 0.5, 0.8, 0.9, 0.95):
        module = Digits(lr=6e-3)
        callbacks = [] if target is None else [TargetSparsity(L1Penalty(0.0, mode="proximal"), target)]
        # The rows of a batch all at once, as the data set can: collating them would take longer than training.
        shuffled = RandomSampler(training, generator=torch.Generator().manual_seed(0))
        data = DataLoader(training, sampler=BatchSampler(shuffled, 128, drop_last=False), batch_size=None)
        trainer_of(*callbacks, max_epochs=40, log_every_n_steps=100).fit(module, data)

        accuracy[target] = (module.network(images).argmax(1) == labels).float().mean().item()
        assert zero_share(matrices(module)) == pytest.approx(target or 0, abs=0.01)
    assert min(accuracy.values()) >= accuracy[None] - 0.025


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": adam,
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    ("penalty", "dim"),
    [
        (L1Penalty(0.0, mode="proximal"), None),
        (ElasticNetPenalty(0.0, 0.5, mode="proximal"), None),
        (GroupLassoPenalty(0.0, mode="proximal"), 0),
        (GroupLassoPenalty(0.0, dim=1, mode="proximal", select="network.*[rd].weight"), 1),
    ],
)
def test_the_share_follows_the_schedule_step_by_step(trainer_of, optimizer, penalty, dim):
    shares = []

    class Count(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            chosen = (
                matrices(pl_module)
                if penalty.select is None
                else [pl_module.network.encoder.weight, pl_module.network.head.weight]
            )
            shares.append(zero_share(chosen, dim))
            self.units = sum(weight.numel() if dim is None else weight.shape[dim] for weight in chosen)

    count = Count()
    trainer_of(TargetSparsity(penalty, 0.6, schedule=Linear(0.0, 1.0, 10)), count).fit(Regressor(optimizer), loader())

    expected = [0.6 * min(step / 10, 1) for step in range(14)]
    assert shares == pytest.approx(expected, abs=1.01 / count.units)


def test_accumulation_and_fp16_do_not_matter(trainer_of):
    from lightning.pytorch.plugins import MixedPrecision

    module = Regressor(adam)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    callback = TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0))

    trainer_of(callback, plugins=[plugin], accumulate_grad_batches=3).fit(module, loader())

    assert zero_share(matrices(module)) == pytest.approx(0.5)


def test_a_sample_of_many_weights_is_enough(trainer_of, monkeypatch):
    monkeypatch.setattr(quota, "_SAMPLE", 1 << 10)
    training, _ = digits()
    module = Digits()
    callback = TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.8, schedule=Constant(1.0))

    trainer_of(callback, max_epochs=2).fit(module, DataLoader(training, 64))

    assert zero_share(matrices(module)) == pytest.approx(0.8, abs=0.05)


def test_the_strength_of_the_penalty_is_the_least(fit):
    strong = L1Penalty(10.0, mode="proximal")

    weights = fit(TargetSparsity(strong, 0.1, schedule=Constant(1.0)))

    assert zero_share([weights["network.encoder.weight"]]) == 1


def test_a_rate_that_warms_up_from_zero_harms_nothing(fit):
    class WarmUp(Regressor):
        def configure_optimizers(self):
            optimizer = adam(self.parameters())
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 5, 1))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = WarmUp()
    fit(TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0)), module=module)

    assert zero_share(matrices(module)) == pytest.approx(0.5)


def test_each_network_of_a_gan_meets_the_target(trainer_of):
    module = Gan()

    trainer_of(TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0))).fit(module, loader())

    for network in (module.generator, module.critic):
        assert zero_share(matrices(network)) == pytest.approx(0.5, abs=0.05)


def test_strength_target_and_reached_share_are_logged(trainer_of):
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer = trainer_of(TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Linear(0.0, 1.0, 20)))

    trainer.fit(module, loader())

    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["reg/target_sparsity/target"] == pytest.approx(0.5 * 13 / 20)
    assert logged["reg/target_sparsity/reached"] == pytest.approx(zero_share(matrices(module)))
    assert logged["reg/target_sparsity/strength"] > 0
    assert logged["reg/penalty/l1"] > 0


def test_each_of_several_targets_is_logged_under_keys_of_its_own(trainer_of):
    def target(layer, share):
        penalty = L1Penalty(0.0, mode="proximal", select=f"network.{layer}.weight")
        return TargetSparsity(penalty, share, schedule=Constant(1.0))

    module = Regressor(adam)
    trainer = trainer_of(target("encoder", 0.8), target("head", 0.5), target("conv", 1 / 3))
    trainer.fit(module, loader())

    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    layers = {"": module.network.encoder, "-1": module.network.head, "-2": module.network.conv}
    for (suffix, layer), share in zip(layers.items(), (0.8, 0.5, 1 / 3), strict=True):
        assert logged[f"reg/target_sparsity{suffix}/target"] == pytest.approx(share)
        assert logged[f"reg/target_sparsity{suffix}/reached"] == pytest.approx(zero_share([layer.weight]))
        assert logged[f"reg/target_sparsity{suffix}/reached"] == pytest.approx(share, abs=0.02)
        assert logged[f"reg/target_sparsity{suffix}/strength"] > 0


def test_it_leaves_the_trainer_as_it_was(trainer_of):
    callback = TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5)
    trainer = trainer_of(callback)
    before = list(trainer.callbacks)
    for _ in range(2):
        trainer.fit(Regressor(), loader())
        assert trainer.callbacks == before

    class Failing(Regressor):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    trainer = trainer_of(callback)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Failing(), loader())
    assert len(trainer.callbacks) == len(before)


@pytest.mark.parametrize("kind", [L1Penalty, GroupLassoPenalty])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(fit, interrupt_and_resume, kind):  # noqa: F811
    def callback():
        return TargetSparsity(kind(0.0, mode="proximal"), 0.7)

    resumed = interrupt_and_resume(
        callback, Regressor(adam), Regressor(adam, seed=1), batches=18, checkpoint={"every_n_epochs": 2}, max_epochs=4
    )

    expected = fit(callback(), module=Regressor(adam), max_epochs=4)
    assert_same_weights(resumed, expected, rtol=0.0)
    assert any((weight == 0).any() for weight in resumed.values())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.1, 0.5), TypeError, "`penalty` must be a penalty with mode='proximal', got 0.1"),
        ((L1Penalty(0.1), 0.5), ValueError, "must have mode='proximal'.*got L1Penalty"),
        (
            (L1Penalty(0.1, mode="proximal", schedule=Constant(1.0)), 0.5),
            ValueError,
            "Give the schedule to TargetSparsi",
        ),
        ((L2Penalty(0.1, mode="proximal"), 0.5), ValueError, "must make zeros.*Use L1Penalty"),
        ((ElasticNetPenalty(0.1, 0.0, mode="proximal"), 0.5), ValueError, "must make zeros.*Use L1Penalty"),
        ((Quartic(0.1, mode="proximal"), 0.5), ValueError, "must make zeros.*Use L1Penalty"),
        (
            (L1Penalty(0.1, mode="proximal"), 1.5),
            ValueError,
            r"`target` must be in \(0, 1\), excluding 0 and 1, got 1.5",
        ),
        ((L1Penalty(0.1, mode="proximal"), 1.0), ValueError, r"`target` must be in \(0, 1\).*got 1.0"),
        ((L1Penalty(0.1, mode="proximal"), "0.5"), TypeError, "`target` must be a number"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        TargetSparsity(*arguments)


def test_a_bad_schedule_is_refused(fit):
    penalty = L1Penalty(0.1, mode="proximal")

    with pytest.raises(TypeError, match="`schedule` must be a schedule or a callable"):
        TargetSparsity(penalty, 0.5, schedule=0.5)
    with pytest.raises(ValueError, match=r"`schedule\(0\)` must be in \[0, 1\], got 2"):
        fit(TargetSparsity(penalty, 0.5, schedule=lambda step: 2.0))


def test_fsdp1_is_refused(trainer_of, monkeypatch):
    callback = TargetSparsity(L1Penalty(0.1, mode="proximal"), 0.5)
    trainer = trainer_of(callback)
    monkeypatch.setattr(type(trainer), "strategy", property(lambda trainer: object.__new__(FSDPStrategy)))

    with pytest.raises(MisconfigurationException, match=r"does not work with FSDP1\. Use FSDP2"):
        callback.setup(trainer, Regressor(), "fit")


def test_a_penalty_that_the_trainer_has_as_well_is_refused(trainer_of):
    penalty = L1Penalty(0.1, mode="proximal")

    with pytest.raises(MisconfigurationException, match="it is there 2 times"):
        trainer_of(penalty, TargetSparsity(penalty, 0.5)).fit(Regressor(), loader())


def test_the_weights_agree_with_a_loop_that_sorts(trainer_of):
    """SGD: the threshold is the right rank among the moduli, whatever the rate."""
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer_of(TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, schedule=Constant(1.0)), max_epochs=1).fit(
        module, loader()
    )

    by_hand = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    optimizer = by_hand.configure_optimizers()
    for batch in loader():
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        optimizer.step()
        with torch.no_grad():
            moduli = torch.cat([weight.abs().flatten() for weight in matrices(by_hand)]).sort().values
            threshold = moduli[len(moduli) // 2 - 1]
            for weight in matrices(by_hand):
                weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))
    assert_same_weights(weights_of(module), weights_of(by_hand), rtol=1e-4)


def by_sorting(weights, target, *, each_layer, floor):
    """Return the thresholds of the weights: the least that make so many zero, found by looking at all moduli."""
    moduli = [weight.abs().flatten().sort().values for weight in weights]
    allowed = [len(values) - math.ceil(floor * len(values)) for values in moduli]
    if each_layer:
        return [values[round(target * len(values)) - 1] for values in moduli]
    wanted = round(target * sum(map(len, moduli)))
    for threshold in torch.cat(moduli).sort().values:
        counts = [min(int((values <= threshold).sum()), most) for values, most in zip(moduli, allowed, strict=True)]
        if sum(counts) >= wanted:
            break
    return [min(threshold, values[most - 1]) for values, most in zip(moduli, allowed, strict=True)]


@pytest.mark.parametrize(
    ("scope", "floor", "target"),
    [("layer", 0.0, 0.5), ("layer", 0.25, 0.7), ("global", 0.25, 0.7), ("global", 0.4, 0.5)],
)
def test_scope_and_floor_agree_with_a_loop_that_sorts(trainer_of, scope, floor, target):
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    penalty = L1Penalty(0.0, mode="proximal")
    callback = TargetSparsity(penalty, target, scope=scope, floor=floor, schedule=Constant(1.0))
    trainer = trainer_of(callback, max_epochs=1)
    trainer.fit(module, loader())

    by_hand = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    optimizer = by_hand.configure_optimizers()
    for batch in loader():
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        optimizer.step()
        with torch.no_grad():
            weights = matrices(by_hand)
            thresholds = by_sorting(weights, target, each_layer=scope == "layer", floor=floor)
            for weight, threshold in zip(weights, thresholds, strict=True):
                weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))
    assert_same_weights(weights_of(module), weights_of(by_hand), rtol=1e-4)
    shares = [zero_share([weight]) for weight in matrices(module)]
    assert max(shares) <= 1 - floor + 1e-6
    if scope == "layer":
        assert shares == pytest.approx([target] * 3, abs=0.06)  # of nine entries, one is 0.11
    else:
        assert zero_share(matrices(module)) == pytest.approx(target, abs=0.02)
        assert max(shares) - min(shares) > 0.05
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["reg/target_sparsity/strength"] == pytest.approx(max(thresholds).item() / 0.1, rel=1e-3)


def test_without_a_floor_a_small_layer_can_end_and_with_one_it_does_not(fit):
    class Unneeded(Regressor):
        """The convolution's weights are small: they go first."""

        def __init__(self):
            super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=1e-3))
            self.network.conv.weight.data *= 1e-3

    def share_of_conv(**settings):
        callback = TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.6, schedule=Constant(1.0), **settings)
        return zero_share([fit(callback, module=Unneeded())["network.conv.weight"]])

    assert share_of_conv() == 1
    assert share_of_conv(floor=0.3) == pytest.approx(6 / 9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_layer_has_its_share_of_groups(fit, optimizer):
    penalty = GroupLassoPenalty(0.0, mode="proximal", select=["*.encoder.weight", "*.conv.weight"])

    weights = fit(TargetSparsity(penalty, 2 / 3, scope="layer", schedule=Constant(1.0)), module=Regressor(optimizer))

    assert zero_share([weights["network.encoder.weight"]], dim=0) == pytest.approx(5 / 7)
    assert zero_share([weights["network.conv.weight"]], dim=0) == pytest.approx(2 / 3)


def test_a_floor_goes_before_the_strength_of_the_penalty(fit):
    strong = L1Penalty(10.0, mode="proximal")

    weights = fit(TargetSparsity(strong, 0.1, floor=0.2, schedule=Constant(1.0)))

    assert zero_share([weights["network.head.weight"]]) == pytest.approx(33 / 42)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"scope": "unit"}, ValueError, "`scope` must be one of 'global', 'layer', got 'unit'"),
        ({"scope": None}, TypeError, "`scope` must be a string"),
        ({"floor": -0.1}, ValueError, r"`floor` must be in \[0, 1\], got -0.1"),
        ({"floor": 0.6}, ValueError, r"`floor`, the least share that is left.* at most 1 - `target`, 0.5, got 0.6"),
    ],
)
def test_a_bad_scope_or_floor_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5, **settings)
