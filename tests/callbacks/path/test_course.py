"""A path has its course: strengths in order, an end of its own, the choice in the module, and nothing left behind."""

import math
import re
import statistics

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_reg import L1Penalty, L2Penalty, RegularizationPath
from tests.callbacks.penalties.test_resume import ResumableLoader
from tests.event_files import scalars
from tests.models import Regressor, Untrainable, loader, weights_of
from tests.reference import assert_same_weights

STRENGTHS = [0.3, 0.1, 0.03]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def path_of(penalty=None, **settings):
    penalty = penalty or L1Penalty(0.7, mode="proximal")
    return RegularizationPath(penalty, **({"strengths": STRENGTHS, "epochs": 2} | settings))


class WithBuffer(Regressor):
    """Counts steps in a buffer; its score is told beforehand, for each batch of each epoch."""

    def __init__(self, scores=()):
        super().__init__(adam)
        self.register_buffer("steps", torch.zeros(()))
        self.scores = scores
        self.strengths = []

    def on_train_epoch_start(self):
        (path,) = (callback for callback in self.trainer.callbacks if isinstance(callback, RegularizationPath))
        self.strengths.append(path.penalty.strength)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores[self.trainer.current_epoch][batch_idx])


class Convex(Regressor):
    def __init__(self, seed=0):
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Linear(5, 2)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_strengths_are_visited_in_order_and_end_the_fit(trainer_of, direction):
    path, module = path_of(direction=direction), WithBuffer()

    trainer_of(path, max_epochs=-1).fit(module, loader())

    ordered = sorted(STRENGTHS, reverse=direction == "down")
    assert module.strengths == [strength for strength in ordered for _ in range(2)]
    assert path.result.strengths == tuple(ordered)
    assert path.result.best == 2
    assert all(math.isnan(score) for score in path.result.scores)
    assert path.penalty.strength == 0.7


def test_each_strength_trains_as_the_penalty_alone_would(trainer_of):
    by_hand, found = Regressor(adam), Regressor(adam)

    trainer_of(path_of(strengths=[0.1]), max_epochs=-1).fit(found, loader())
    trainer_of(L1Penalty(0.1, mode="proximal"), max_epochs=2).fit(by_hand, loader())

    assert_same_weights(weights_of(found), weights_of(by_hand), rtol=0.0)


# Three batches for validation in each of six epochs; every second is the end of a strength.
SCORES = [[9, 9, 9], [4, 5, 6], [9, 9, 9], [3, 4, 4.5], [9, 9, 9], [2, 4, 5]]


@pytest.mark.parametrize(
    ("rule", "mode", "best"), [("best", "min", 2), ("best", "max", 0), ("one_se", "min", 1), ("one_se", "max", 0)]
)
@pytest.mark.parametrize("restore", [True, False])
def test_the_choice_is_in_the_module_with_its_buffers(trainer_of, rule, mode, best, restore):
    scores = [statistics.mean(SCORES[epoch]) for epoch in (1, 3, 5)]
    error = statistics.stdev(SCORES[5]) / 3**0.5
    assert scores[1] < scores[2] + error < scores[0]
    path = path_of(monitor="score", monitor_mode=mode, rule=rule, restore=restore)
    module = WithBuffer(SCORES)

    trainer_of(path, max_epochs=-1).fit(module, loader(), loader(count=12))

    assert path.result.scores == pytest.approx(scores)
    assert path.result.best == best
    assert module.steps == 14 * (best + 1 if restore else 3)
    left = path.result.weights(best if restore else 2)
    assert left.keys() == {name for name, p in module.named_parameters() if p.ndim > 1}
    assert all(torch.equal(weight, module.get_parameter(name)) for name, weight in left.items())


def test_an_early_end_of_a_strength_is_where_the_residual_is_small(trainer_of):
    path, module = path_of(epochs=500, tolerance=1e-3, strengths=[0.1]), Convex()
    trainer = trainer_of(path, max_epochs=-1)

    trainer.fit(module, loader(batch_size=28))

    assert 1 < trainer.current_epoch < 499
    module.zero_grad()
    module.loss(next(iter(loader(batch_size=28)))).backward()
    weight = module.network.weight
    slope = weight.grad / 0.1
    distance = torch.where(weight == 0, slope.abs() - 1, (slope + weight.sign()).abs()).amax()
    assert distance < 2e-3


@pytest.mark.parametrize(
    ("settings", "callbacks", "told"),
    [
        ({"max_epochs": 5}, [], r"`max_epochs` must be at least 6 \(3 strengths x 2 epochs\), got 5"),
        ({"max_steps": 41}, [], r"`max_steps` must be at least 42 \(3 strengths x 2 epochs\), got 41"),
        ({"max_time": "00:01:00:00"}, [], "`max_time` might stop the fit before RegularizationPath is complete"),
        ({}, [EarlyStopping("train/loss")], "EarlyStopping might stop the fit before RegularizationPath is complete"),
    ],
    ids=["max_epochs", "max_steps", "max_time", "EarlyStopping"],
)
def test_a_trainer_that_would_cut_the_path_is_refused(trainer_of, settings, callbacks, told):
    trainer = trainer_of(path_of(), *callbacks, **({"max_epochs": -1} | settings))

    with pytest.raises(MisconfigurationException, match=told):
        trainer.fit(Untrainable(), loader())


@pytest.mark.parametrize("epochs", [2, None])
def test_epochs_without_validation_are_refused_with_a_monitor(trainer_of, epochs):
    trainer = trainer_of(
        path_of(monitor="val/loss"),
        max_epochs=-1,
        check_val_every_n_epoch=epochs,
        val_check_interval=1.0 if epochs else 3,
    )

    with pytest.raises(MisconfigurationException, match="`check_val_every_n_epoch` must be 1"):
        trainer.fit(Untrainable(), loader(), loader(count=12))


def test_validation_that_is_not_at_the_end_of_an_epoch_is_refused(trainer_of):
    trainer = trainer_of(path_of(monitor="val/loss"), max_epochs=-1, val_check_interval=3)

    with pytest.raises(MisconfigurationException, match="`val_check_interval` must divide the 7 batches"):
        trainer.fit(Untrainable(), loader(), loader(count=12))


def test_a_stream_has_no_number_of_steps(trainer_of):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from loader()

    trainer = trainer_of(path_of(), max_epochs=-1, max_steps=1000)

    told = r"`max_steps` must be -1 \(3 strengths x 2 epochs\), got 1000"
    with pytest.raises(MisconfigurationException, match=told):
        trainer.fit(Untrainable(), torch.utils.data.DataLoader(Stream(), batch_size=None))


@pytest.mark.parametrize("strengths", [[0.1], 5])
def test_frozen_weights_have_no_path(trainer_of, strengths):
    module = Untrainable()
    module.network.encoder.requires_grad_(requires_grad=False)
    penalty = L1Penalty(0.1, select="network.encoder.weight", mode="proximal")

    with pytest.raises(MisconfigurationException, match="no optimizer trains any weight that L1Penalty"):
        trainer_of(path_of(penalty, strengths=strengths), max_epochs=-1).fit(module, loader())


AVERAGES = {"EMAWeightAveraging": {}, "StochasticWeightAveraging": {"swa_lrs": 0.1}}


# Exponential averages are there since Lightning 2.6.
@pytest.mark.parametrize("name", [name for name in AVERAGES if hasattr(of_lightning, name)])
def test_an_average_over_all_strengths_is_refused(trainer_of, name):
    average = getattr(of_lightning, name)(**AVERAGES[name])

    with pytest.raises(MisconfigurationException, match=f"{name} would average the weights of all strengths"):
        trainer_of(path_of(), average, max_epochs=100).fit(Untrainable(), loader())


@pytest.mark.parametrize(
    ("strengths", "told"),
    [
        ([0.3, 0.1, 0.03], "l1 0.3 to 0.03"),
        ([0.1], "l1 0.1"),
        (3, r"l1 \(searching for the largest strength\)"),
    ],
    ids=["given", "one", "searched"],
)
def test_the_plan_tells_the_strengths_of_the_path(trainer_of, caplog, strengths, told):
    with caplog.at_level("INFO"), pytest.raises(AssertionError, match="a training step has run"):
        trainer_of(path_of(strengths=strengths), max_epochs=-1).fit(Untrainable(), loader())

    assert re.search(rf"7 x 5 +{told}\n", caplog.text)
    assert "L1Penalty(select=None, mode='proximal', schedule=None)" in caplog.text


def test_no_chart_shows_the_strength_that_holds_weights_at_zero(trainer_of, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")

    trainer_of(path_of(strengths=2), max_epochs=-1, logger=logger).fit(Convex(), loader())

    logged = scalars(tmp_path)
    assert max(logged["reg/penalty/l1"].values()) < 10
    assert max(logged["reg/path/strength"].values()) < 10


def test_the_penalty_of_a_path_is_not_in_the_trainer_too(trainer_of):
    penalty = L1Penalty(0.1, mode="proximal")

    with pytest.raises(MisconfigurationException, match="exactly once"):
        trainer_of(path_of(penalty), penalty, max_epochs=-1).fit(Untrainable(), loader())


def test_a_path_that_is_cut_says_so(trainer_of):
    class Impatient(Regressor):
        def on_train_epoch_end(self):
            self.trainer.should_stop = self.trainer.current_epoch == 3

    path = path_of()

    with pytest.warns(UserWarning, match="stopped before RegularizationPath was complete, after 2 of 3 strengths"):
        trainer_of(path, max_epochs=-1).fit(Impatient(), loader())

    assert path.result.strengths == (0.3, 0.1)


def test_schedulers_of_the_learning_rate_are_told_of(trainer_of):
    class Decaying(Regressor):
        def configure_optimizers(self):
            optimizer = adam(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    with pytest.warns(UserWarning, match="learning rate scheduler"):
        trainer_of(path_of(strengths=[0.1], epochs=1), max_epochs=-1).fit(Decaying(), loader())


def test_an_exception_undoes_what_the_path_changed(trainer_of):
    class Failing(Regressor):
        def on_train_epoch_end(self):
            raise RuntimeError("no disk")

    path = path_of()
    trainer = trainer_of(path, max_epochs=-1)

    with pytest.raises(RuntimeError, match="no disk"):
        trainer.fit(Failing(), loader())

    assert path.penalty.strength == 0.7
    assert trainer.callbacks == [path]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: path_of(L1Penalty(0.1)), "`penalty` must have mode='proximal'"),
        (lambda: path_of(rule="one_se"), "needs a `monitor`"),
        (lambda: path_of(strengths=[0.1, 0.1]), "`strengths` must be"),
        (lambda: path_of(smallest=1.0), "`smallest` must be in"),
        (lambda: path_of(L2Penalty(0.1, mode="proximal"), strengths=5), "`strengths` must be a list"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_monitor_that_nobody_logs_is_refused(trainer_of):
    with pytest.raises(MisconfigurationException, match=r"`monitor` must be a value that the module logs.*train/loss"):
        trainer_of(path_of(monitor="val/los", epochs=1), max_epochs=-1).fit(Regressor(), loader())


class Logging(Regressor):
    """Has a score for each epoch, which it logs in one of its methods; it validates in any case."""

    def __init__(self, scores, method):
        super().__init__(adam)
        self.scores, self.method = scores, method

    def tell(self, method):
        if method == self.method and (score := self.scores[self.trainer.current_epoch]) is not None:
            self.log("score", float(score), on_step=False, on_epoch=True)

    def training_step(self, batch, batch_idx):
        self.tell("training_step")
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.tell("validation_step")

    def on_validation_epoch_end(self):
        self.tell("on_validation_epoch_end")

    def on_train_epoch_end(self):
        self.tell("on_train_epoch_end")


@pytest.mark.parametrize("method", ["training_step", "validation_step", "on_validation_epoch_end"])
def test_a_score_is_of_the_last_epoch_of_its_strength_wherever_it_is_logged(trainer_of, method):
    path = path_of(monitor="score")

    trainer_of(path, max_epochs=-1).fit(Logging([9, 3, 8, 1, 7, 2], method), loader(), loader(count=12))

    assert path.result.scores == (3, 1, 2)


@pytest.mark.parametrize(
    ("scores", "method"),
    [([9, 3, 8, None], "validation_step"), ([9, 3, 8, None], "training_step"), ([9, 3, 8, 1], "on_train_epoch_end")],
)
def test_a_score_of_an_earlier_epoch_is_refused(trainer_of, scores, method):
    with pytest.raises(MisconfigurationException, match="`monitor` must be a value that the module logs in every"):
        trainer_of(path_of(monitor="score"), max_epochs=-1).fit(Logging(scores, method), loader(), loader(count=12))


CHECKPOINTS = {
    "in the search": {"every_n_train_steps": 9},
    "in the first epoch of the first strength": {"every_n_train_steps": 5},
    "in the middle of an epoch": {"every_n_train_steps": 5},
    "at the last batch of an epoch": {"every_n_train_steps": 7},
    "at the end of an epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "after validation": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
}


@pytest.mark.parametrize("moment", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each run has a folder of its own
def test_a_resumed_path_equals_the_uninterrupted_one(trainer_of, tmp_path, moment):
    def fit(folder, *, ckpt_path=None, seed=0):
        settings = {"epochs": 4, "tolerance": 0.05, "monitor": "val/loss", "rule": "one_se", "monitor_mode": "max"}
        path = path_of(strengths=STRENGTHS if "first" in moment else 3, smallest=0.1, **settings)
        keep = ModelCheckpoint(tmp_path / folder, filename="{step}", save_top_k=-1, **CHECKPOINTS[moment])
        module = Convex(seed)
        trainer = trainer_of(path, keep, max_epochs=-1, enable_checkpointing=True)
        trainer.fit(module, ResumableLoader(), loader(count=12), ckpt_path=ckpt_path)
        return path.result, module, trainer.global_step

    expected, module, steps = fit("whole")
    saved = sorted((tmp_path / "whole").glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    # The search takes half of the run at least.
    middle = saved[-3] if int(saved[-3].stem.partition("=")[2]) % 7 or "middle" not in moment else saved[-2]
    first = saved[1] if moment == "in the search" else saved[0] if "first" in moment else middle

    found, resumed, resumed_steps = fit("resumed", ckpt_path=first, seed=1)

    assert resumed_steps == steps
    assert (found.strengths, found.scores, found.nonzeros) == (expected.strengths, expected.scores, expected.nonzeros)
    assert found.best == expected.best
    assert_same_weights(weights_of(resumed), weights_of(module), rtol=0.0)


def test_a_second_fit_begins_anew(trainer_of):
    path, first, second = path_of(strengths=[0.1]), Regressor(adam), Regressor(adam)

    trainer_of(path, max_epochs=-1).fit(first, loader())
    trainer_of(path, max_epochs=-1).fit(second, loader())

    assert_same_weights(weights_of(second), weights_of(first), rtol=0.0)
    assert len(path.result.strengths) == 1
