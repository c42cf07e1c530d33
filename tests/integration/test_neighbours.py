"""Beside Lightning's own callbacks, before or after them in the list, each of ours does what it does alone."""

import gc
import pickle
from functools import cache, partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    RichProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.nn.utils import prune

from lightning_reg import (
    DropoutScheduler,
    L1Penalty,
    LipschitzMonitor,
    MarginPenalty,
    RegularizationMonitor,
    RegularizationPath,
    SpectralConstraint,
)
from tests.models import Regressor, loader, weights_of
from tests.reference import assert_same_weights, train_by_hand
from tests.test_all_callbacks import CALLBACKS

LEARNING_RATE, DECAY, EPOCHS, STEPS = 0.05, 0.8, 2, 4
HAS_EMA = KEEPS_WHAT_IT_FINDS = hasattr(of_lightning, "EMAWeightAveraging")  # since Lightning 2.6

# One of each kind: the last, which has most settings. A path ends the fit itself, and refuses what would end it before.
KINDS = {type(it): it for it in CALLBACKS if not isinstance(it, RegularizationPath)}
every_callback = pytest.mark.parametrize("ours", KINDS.values(), ids=repr)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* averages weights, so that what mode=.proximal. made exactly zero"),
    pytest.mark.filterwarnings("ignore:.* averages weights, but an average of weights that keep the rule"),
]


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_garbage():
    """Lightning collects garbage with every batch size it tries: most of the time here, if it looks at all modules."""
    gc.freeze()
    yield
    gc.unfreeze()


class Model(Regressor):
    """Has its data, dropout with the same masks in every run, and what tuners look for; keeps its weights over time."""

    def __init__(self, learning_rate=LEARNING_RATE, batch_size=7):
        super().__init__(lambda parameters: torch.optim.SGD(parameters, self.learning_rate, momentum=0.9))
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.at_epoch_start, self.after_steps = [], []
        self.rates = set()

    def train_dataloader(self):
        return loader(batch_size=self.batch_size)

    def val_dataloader(self):
        return loader(batch_size=28)

    def training_step(self, batch, batch_idx):
        torch.manual_seed(batch_idx)
        inputs, targets = batch
        return super().training_step((self.network.dropout(inputs), targets), batch_idx)

    def on_train_epoch_start(self):
        self.at_epoch_start.append(weights_of(self))

    def on_train_batch_end(self, *args):
        self.after_steps.append(weights_of(self))
        self.rates = {group["lr"] for group in self.optimizers().param_groups}


class Memory(Logger):
    """Keeps what is written of regularization: tag -> step -> value."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.written = {}

    def log_metrics(self, metrics, step=None):
        for tag, value in metrics.items():
            if tag.startswith("reg"):
                self.written.setdefault(tag, {})[step] = float(value)

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def trainer_with(*callbacks, folder=None):
    return Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=list(callbacks),
        logger=Memory(),
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=any(isinstance(callback, RichProgressBar) for callback in callbacks),
        default_root_dir=folder,
    )


def train(module, *callbacks, folder=None):
    """Train a module, and return what was logged of regularization."""
    trainer = trainer_with(*callbacks, folder=folder)
    trainer.fit(module)
    return trainer.logger.written


def copy_of(ours):
    return pickle.loads(pickle.dumps(ours))


@cache
def alone(ours, kind=Model, **settings):
    """Return a module that `ours` has trained with no other callback, and what was logged."""
    module = kind(**settings)
    return module, train(module, copy_of(ours))


def in_both_orders(ours, neighbour):
    yield copy_of(ours), neighbour()
    yield neighbour(), copy_of(ours)


def assert_same(module, expected, rtol=0.0, atol=0.0):
    torch.testing.assert_close(weights_of(module), expected, rtol=rtol, atol=atol)


@every_callback
def test_callbacks_that_only_watch_change_nothing(ours, tmp_path):
    expected, logged = alone(ours)

    for is_first in (True, False):
        watching = [
            EarlyStopping("val/loss", patience=9),
            ModelCheckpoint(monitor="val/loss", save_top_k=2),
            LearningRateMonitor("step"),
            DeviceStatsMonitor(cpu_stats=True),
            RichProgressBar(),
        ]
        module = Model()
        assert (
            train(module, *([copy_of(ours), *watching] if is_first else [*watching, copy_of(ours)]), folder=tmp_path)
            == logged
        )
        assert_same(module, weights_of(expected))


# As many steps as a run of two epochs has with the batches it is used with: a finder wants at least 13.
SEARCHED = {"batch_size": 4}
find_rate = partial(LearningRateFinder, 1e-4, 0.1, num_training_steps=14, early_stop_threshold=None)


@cache
def steps_after_a_finder():
    """Return how many steps a run has that begins with a search: Lightning 2.5 leaves out an epoch."""
    module = Model(**SEARCHED)
    trainer = trainer_with(find_rate())
    trainer.fit(module)
    assert trainer.global_step == 14 or not KEEPS_WHAT_IT_FINDS
    return trainer.global_step


@every_callback
def test_a_learning_rate_finder_leaves_no_trace_but_the_rate(ours, tmp_path):
    if not KEEPS_WHAT_IT_FINDS and isinstance(ours, (DropoutScheduler, LipschitzMonitor)):
        pytest.skip("These two count epochs, and Lightning 2.5 counts one without steps after the search.")
    for pair in in_both_orders(ours, find_rate):
        module = Model(**SEARCHED)
        logged = train(module, *pair, folder=tmp_path)

        (found,) = module.rates
        assert (found != LEARNING_RATE) == KEEPS_WHAT_IT_FINDS
        expected, expected_log = alone(ours, learning_rate=found, **SEARCHED)
        steps = steps_after_a_finder()
        assert logged == {tag: until(values, steps) for tag, values in expected_log.items()}
        assert len(module.after_steps) == 14 + steps
        torch.testing.assert_close(module.after_steps[14:], expected.after_steps[:steps], rtol=0, atol=0)


@every_callback
def test_a_batch_size_finder_leaves_no_trace_but_the_size(ours, tmp_path):
    for pair in in_both_orders(ours, partial(BatchSizeFinder, init_val=7, max_trials=2, steps_per_trial=1)):
        module = Model(batch_size=4)
        logged = train(module, *pair, folder=tmp_path)

        assert module.batch_size > 4
        expected, expected_log = alone(ours, batch_size=module.batch_size)
        assert logged == expected_log
        assert_same(module, weights_of(expected))


def until(values, steps):
    return {step: value for step, value in values.items() if step < steps}


def exponential_average(steps):
    average = steps[0]
    for weights in steps[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * weights[name] for name in average}
    return average


def mean(many):
    return {name: torch.stack([weights[name] for weights in many]).mean(0) for name in many[0]}


class WithBatchNorm(Model):
    """SWA passes over the data once more for such a network, without a step, to measure what is normalized."""

    def __init__(self):
        super().__init__()
        self.network.norm = nn.BatchNorm1d(7)


# Each with the network that is trained, and the average that it is to end with, by hand.
AVERAGES = {
    name: (
        lambda: StochasticWeightAveraging(swa_lrs=LEARNING_RATE, swa_epoch_start=1),
        kind,
        lambda model: mean(model.at_epoch_start[:EPOCHS]),
    )
    for name, kind in {"SWA": Model, "SWA with batch norm": WithBatchNorm}.items()
}
if HAS_EMA:
    AVERAGES["EMA"] = (
        lambda: of_lightning.EMAWeightAveraging(decay=DECAY),
        Model,
        lambda model: exponential_average(model.after_steps),
    )


@pytest.mark.parametrize("averaging", AVERAGES.values(), ids=AVERAGES)
@every_callback
def test_averages_equal_the_averaged_weights_of_the_run_without_averaging(ours, averaging):
    neighbour, kind, average = averaging
    if isinstance(ours, MarginPenalty) and kind is WithBatchNorm:
        with pytest.raises(MisconfigurationException, match="'norm', a BatchNorm1d, follows the data"):
            train(kind(), copy_of(ours))
        return
    expected, expected_log = alone(ours, kind)

    for pair in in_both_orders(ours, neighbour):
        module = kind()
        logged = train(module, *pair)
        for tag, values in expected_log.items():
            # At the end of its epoch without steps, Lightning logs once more.
            assert until(logged[tag], EPOCHS * STEPS) == values
        assert logged.keys() == expected_log.keys()
        assert_same(module, average(expected), rtol=1e-5, atol=1e-7)


def only_trained(parameters, learning_rate):
    return torch.optim.SGD([it for it in parameters if it.requires_grad], learning_rate, momentum=0.9)


class Thaw(BaseFinetuning):
    """Freezes the encoder before training and lets it go at the second epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.network.encoder)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.network.encoder, optimizer, LEARNING_RATE, initial_denom_lr=1.0)


class Thawed(Model):
    def configure_optimizers(self):
        return only_trained(self.parameters(), LEARNING_RATE)


class ThawsItself(Thawed):
    def __init__(self):
        super().__init__()
        self.network.encoder.requires_grad_(requires_grad=False)

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        if self.current_epoch == 1:
            self.network.encoder.requires_grad_(requires_grad=True)
            self.optimizers().optimizer.add_param_group({"params": list(self.network.encoder.parameters())})


@every_callback
def test_frozen_layers_are_left_alone_until_they_are_trained(ours):
    expected, expected_log = alone(ours, ThawsItself)
    before = weights_of(Model())["network.encoder.weight"]

    for pair in in_both_orders(ours, Thaw):
        module = Thawed()
        assert train(module, *pair) == expected_log
        assert_same(module, weights_of(expected))
        encoder = [weights["network.encoder.weight"] for weights in module.after_steps]
        assert all(torch.equal(weight, before) for weight in encoder[:STEPS])
        assert not torch.equal(encoder[-1], before)


class PrunesItself(Model):
    def on_train_epoch_end(self):
        prune.l1_unstructured(self.network.head, "weight", 0.5)

    def on_train_end(self):
        prune.remove(self.network.head, "weight")


@every_callback
def test_pruned_weights_stay_zero(ours):
    expected, expected_log = alone(ours, PrunesItself)

    class Pruning(ModelPruning):
        def __init__(self):
            super().__init__("l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False)

        def setup(self, trainer, pl_module, stage):
            self._parameters_to_prune = [(pl_module.network.head, "weight")]
            super().setup(trainer, pl_module, stage)

    for pair in in_both_orders(ours, Pruning):
        module = Model()
        assert train(module, *pair) == expected_log
        assert_same(module, weights_of(expected))
        assert (module.network.head.weight == 0).sum() >= 31  # of 42: half, and half of the rest


@every_callback
def test_a_tuner_before_training_changes_nothing_but_its_result(ours, tmp_path):
    module = Model(batch_size=4)
    trainer = trainer_with(copy_of(ours), folder=tmp_path)
    tuner = Tuner(trainer)
    tuner.lr_find(module, min_lr=1e-4, max_lr=0.1, num_training=14, early_stop_threshold=None)
    tuner.scale_batch_size(module, init_val=7, max_trials=2, steps_per_trial=1)
    trainer.fit(module)

    assert module.learning_rate != LEARNING_RATE
    assert module.batch_size > 4
    expected, expected_log = alone(ours, learning_rate=module.learning_rate, batch_size=module.batch_size)
    assert trainer.logger.written == expected_log
    assert_same(module, weights_of(expected))


def penalties_by_hand(module, strength):
    """Train a module by hand, and return the value of the penalty before each step."""
    values = []

    def term(weights):
        value = strength * sum(weight.abs().sum() for weight in weights)
        values.append(value.item())
        return value

    train_by_hand(module, loader(batch_size=7), term, epochs=5)
    return values


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_early_stopping_and_checkpoints_can_watch_the_penalty(is_first, trainer_of, tmp_path):
    strength = 0.02
    at_epoch_end = penalties_by_hand(Regressor(), strength)[STEPS - 1 :: STEPS]
    threshold = (at_epoch_end[2] + at_epoch_end[3]) / 2
    assert at_epoch_end == sorted(at_epoch_end, reverse=True)  # it falls
    watching = [
        EarlyStopping("reg/penalty", stopping_threshold=threshold, patience=9),
        ModelCheckpoint(tmp_path, "{epoch}", monitor="reg/penalty/l1", save_top_k=2, auto_insert_metric_name=False),
    ]
    ours = L1Penalty(strength)

    trainer = trainer_of(
        *([ours, *watching] if is_first else [*watching, ours]), max_epochs=5, enable_checkpointing=True
    )
    trainer.fit(Regressor(), loader(batch_size=7))

    assert trainer.current_epoch == 4  # the first whose penalty is below
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"2.ckpt", "3.ckpt"}
    best = trainer.checkpoint_callback
    assert best.best_model_score.item() == pytest.approx(at_epoch_end[3], rel=1e-5)
    assert sorted(value.item() for value in best.best_k_models.values()) == pytest.approx(
        sorted(at_epoch_end[2:4]), rel=1e-5
    )


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_the_objective_beside_a_learning_rate_finder_is_the_one_written_by_hand(is_first, tmp_path):
    class Plain(Model):
        def __init__(self):
            super().__init__(**SEARCHED)
            self.network.dropout.p = 0.0

    module = Plain()
    train(module, *([L1Penalty(0.02), find_rate()] if is_first else [find_rate(), L1Penalty(0.02)]), folder=tmp_path)

    (found,) = module.rates
    by_hand = Regressor(lambda parameters: torch.optim.SGD(parameters, found, momentum=0.9))
    train_by_hand(
        by_hand,
        loader(**SEARCHED),
        lambda weights: 0.02 * sum(w.abs().sum() for w in weights),
        epochs=steps_after_a_finder() // 7,
    )
    assert_same_weights(weights_of(module), weights_of(by_hand))


@pytest.mark.twin
@pytest.mark.parametrize("averaging", AVERAGES.values(), ids=AVERAGES)
def test_the_last_numbers_of_a_monitor_belong_to_the_last_step_not_to_an_average(averaging, tmp_path):
    neighbour, kind, _ = averaging
    for callbacks in in_both_orders(RegularizationMonitor(), neighbour):
        module = kind()
        trainer = trainer_with(*callbacks, folder=tmp_path)
        trainer.fit_loop.epoch_loop.max_steps = 6  # in the middle of the second epoch
        trainer.log_every_n_steps = 4  # not at the last step
        trainer.fit(module)

        trained = module.after_steps[5]
        norm = torch.cat([weight.flatten() for weight in trained.values() if weight.ndim > 1]).norm()
        assert trainer.logger.written["reg/weight_norm"][5] == pytest.approx(norm.item(), rel=1e-5)
        assert weights_of(module)["network.head.weight"].norm() != trained["network.head.weight"].norm()


def wide(batch):
    """Return an input of the head."""
    return batch[0].repeat(1, 5)[:, :21]


@pytest.mark.twin
@pytest.mark.parametrize("in_mid_epoch", [True, False], ids=["in mid-epoch", "at the end of an epoch"])
@pytest.mark.parametrize("averaging", AVERAGES.values(), ids=AVERAGES)
def test_the_last_bounds_of_a_lipschitz_monitor_belong_to_the_last_step_not_to_an_average(averaging, in_mid_epoch):
    neighbour, kind, _ = averaging
    for callbacks in in_both_orders(LipschitzMonitor(target="network.head", input_transform=wide), neighbour):
        module = kind()
        trainer = trainer_with(*callbacks)
        if in_mid_epoch:
            trainer.fit_loop.epoch_loop.max_steps = 6
        trainer.fit(module)

        last = 5 if in_mid_epoch else EPOCHS * STEPS - 1
        norm = torch.linalg.matrix_norm(module.after_steps[last]["network.head.weight"], 2).item()
        for side in ("lower", "upper"):
            assert trainer.logger.written[f"reg/lipschitz_{side}"][last] == pytest.approx(norm, rel=1e-4)
        assert torch.linalg.matrix_norm(module.network.head.weight, 2).item() != pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("averaging", AVERAGES.values(), ids=AVERAGES)
def test_averages_of_constrained_weights_are_within_the_bound(averaging):
    neighbour, kind, _ = averaging
    for callbacks in in_both_orders(SpectralConstraint(0.5), neighbour):
        module = kind()
        train(module, *callbacks)

        for layer in (module.network.encoder, module.network.head):
            assert torch.linalg.matrix_norm(layer.weight, 2) <= 0.5 * 1.0001
