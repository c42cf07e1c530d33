"""The relaxed solution: the choice trains on without the penalty, on the zeros that it has."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.linear_model import LinearRegression, lasso_path

from lightning_reg import AnchorPenalty, L1Penalty, RegularizationPath
from tests.callbacks.path.test_solutions import CENTRED, EXACT, INPUTS, OPTIMIZERS, TARGETS, Linear, squares
from tests.callbacks.penalties.test_resume import ResumableLoader
from tests.event_files import scalars
from tests.models import Regressor, Untrainable, loader, weights_of
from tests.reference import assert_same_weights

STRENGTHS = [0.3, 0.1, 0.03]


def path_of(**settings):
    penalty = L1Penalty(0.7, mode="proximal")
    return RegularizationPath(penalty, **({"strengths": STRENGTHS, "epochs": 2, "relaxed_epochs": 2} | settings))


class Told(Regressor):
    """Has a score for each epoch, and keeps its parameters at the end of one epoch."""

    def __init__(self, scores, at=None):
        super().__init__(partial(torch.optim.Adam, lr=0.02))
        self.scores, self.at = scores, at

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores[self.trainer.current_epoch])

    def on_train_epoch_end(self):
        if self.trainer.current_epoch == self.at:
            self.kept = weights_of(self)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_after_the_lasso_come_the_least_squares_of_its_columns(trainer_of, optimizer):
    path = RegularizationPath(
        L1Penalty(0.0, select="*.weight", mode="proximal"), strengths=[0.3, 0.1], epochs=20, relaxed_epochs=20
    )
    module = Linear(INPUTS, TARGETS, squares, OPTIMIZERS[optimizer])

    trainer_of(path, max_epochs=-1, log_every_n_steps=10_000).fit(module, range(20))

    lasso = lasso_path(INPUTS, CENTRED[:, 0], alphas=[0.1], **EXACT)[1][:, 0]
    expected = LinearRegression().fit(INPUTS[:, lasso != 0], TARGETS[:, 0])
    ours = module.layer.weight.detach().numpy()[0]
    assert 2 < np.count_nonzero(lasso) < 10
    np.testing.assert_array_equal(ours != 0, lasso != 0)
    np.testing.assert_allclose(ours[lasso != 0], expected.coef_, rtol=0, atol=1e-4)
    assert module.layer.bias.item() == pytest.approx(expected.intercept_, abs=1e-4)
    # The result keeps what the lasso was.
    np.testing.assert_allclose(path.result.weights(1)["layer.weight"].numpy()[0], lasso, rtol=0, atol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("rule", ["best", "one_se"])
def test_it_is_a_new_training_from_the_choice_in_which_zeros_stay(trainer_of, accumulate, rule):
    # The second strength is the best, at the end of its second epoch.
    module = Told(scores=[9, 5, 9, 1, 9, 7, 9, 4], at=3)
    path = path_of(monitor="score", rule=rule)

    trainer_of(path, max_epochs=-1, accumulate_grad_batches=accumulate).fit(module, loader(), loader(count=12))

    by_hand = Regressor()
    by_hand.load_state_dict(module.kept)
    zeros = {name: weight == 0 for name, weight in by_hand.named_parameters() if weight.ndim > 1}
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.02)
    batches = list(loader())
    for index, batch in [*enumerate(batches)] * 2:
        (by_hand.loss(batch) / accumulate).backward()
        if (index + 1) % accumulate == 0 or index + 1 == len(batches):
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for name, mask in zeros.items():
                    by_hand.get_parameter(name)[mask] = 0
    assert path.result.best == 1
    assert sum(mask.sum() for mask in zeros.values()) > 20
    assert_same_weights(weights_of(module), weights_of(by_hand), rtol=1e-6)


def test_its_score_is_in_the_result_the_figure_and_the_loggers(trainer_of, tmp_path):
    path = path_of(monitor="score")
    logger = TensorBoardLogger(tmp_path, name="", version="")

    trainer_of(path, max_epochs=-1, logger=logger).fit(
        Told(scores=[9, 5, 9, 1, 9, 7, 9, 4]), loader(), loader(count=12)
    )

    logged, last = scalars(tmp_path), 8 * 7 - 1
    assert path.result.relaxed_score == 4
    assert path.result.scores == (5, 1, 7)
    assert logged["reg/path/relaxed_score"] == {last: 4}
    assert logged["reg/path/strength"][last] == 0
    _, star = path.result.plot().axes[1].get_lines()[:2]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (STRENGTHS[1], 4)


def test_without_a_monitor_it_has_no_score(trainer_of):
    path = path_of()

    trainer_of(path, max_epochs=-1).fit(Regressor(), loader())

    assert math.isnan(path.result.relaxed_score)


CHECKPOINTS = {
    "at the end of the last strength": (6, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),
    "in the middle of a relaxed epoch": (7, {"every_n_train_steps": 5}),
    "at the end of a relaxed epoch": (7, {"every_n_epochs": 1, "save_on_train_epoch_end": True}),
    "after validation": (7, {"every_n_epochs": 1, "save_on_train_epoch_end": False}),
}


@pytest.mark.parametrize("moment", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each run has a folder of its own
def test_resumed_it_equals_the_uninterrupted_one(trainer_of, tmp_path, moment):
    epochs, settings = CHECKPOINTS[moment]

    def fit(folder, *, ckpt_path=None):
        path = path_of(monitor="score", relaxed_epochs=3)
        keep = ModelCheckpoint(tmp_path / folder, filename="{step}", save_top_k=-1, **settings)
        module = Told(scores=[9, 5, 9, 1, 9, 7, 9, 8, 4])
        trainer = trainer_of(path, keep, max_epochs=-1, enable_checkpointing=True)
        trainer.fit(module, ResumableLoader(), loader(count=12), ckpt_path=ckpt_path)
        return path.result, module, trainer.global_step

    expected, module, steps = fit("whole")
    saved = {int(path.stem.partition("=")[2]): path for path in (tmp_path / "whole").glob("*.ckpt")}
    step = max(step for step in saved if step <= 7 * epochs) if "middle" not in moment else 50

    found, resumed, resumed_steps = fit("resumed", ckpt_path=saved[step])

    assert resumed_steps == steps == 9 * 7
    assert (found.scores, found.relaxed_score) == (expected.scores, expected.relaxed_score) == ((5, 1, 7), 4)
    assert_same_weights(weights_of(resumed), weights_of(module), rtol=0.0)


def test_a_fit_that_ends_early_says_how_far_it_came(trainer_of):
    class Impatient(Regressor):
        def on_train_epoch_end(self):
            self.trainer.should_stop = self.trainer.current_epoch == 6

    with pytest.warns(UserWarning, match="was complete, after 1 of 2 epochs without the penalty"):
        trainer_of(path_of(), max_epochs=-1).fit(Impatient(), loader())


def test_max_epochs_counts_its_epochs_too(trainer_of):
    with pytest.raises(MisconfigurationException, match=r"at least 8 \(3 strengths x 2 epochs \+ 2 without"):
        trainer_of(path_of(), max_epochs=7).fit(Untrainable(), loader())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"restore": False}, "`relaxed_epochs` starts from .* the chosen strength, so it needs `restore=True`"),
        ({"penalty": AnchorPenalty(0.1, norm="l1", mode="proximal")}, "needs a penalty that makes entries zero"),
    ],
)
def test_without_a_choice_or_zeros_it_is_refused(settings, told):
    settings = {"penalty": L1Penalty(0.1, mode="proximal"), "strengths": STRENGTHS, "relaxed_epochs": 1} | settings

    with pytest.raises(ValueError, match=told):
        RegularizationPath(**settings)
