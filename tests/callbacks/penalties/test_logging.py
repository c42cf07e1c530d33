"""Logged values are values of the written objective, for TensorBoard and for other callbacks."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision

from lightning_reg import L1Penalty, L2Penalty, Linear, Penalty
from tests.event_files import scalars
from tests.models import Gan, Regressor, loader
from tests.reference import both_modes


class Recorder(Callback):
    """Keeps the weights at the start of every batch and its loss."""

    def __init__(self):
        self.weights, self.losses = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append([p.detach().clone() for p in pl_module.parameters() if p.ndim >= 2])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs:
            self.losses.append(outputs["loss"].item())


@both_modes
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("scale", [None, 65536.0])
def test_logged_values_agree_with_the_written_objective(fit, tmp_path, mode, accumulate, scale):
    recorder = Recorder()
    plugins = scale and [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))]

    fit(
        recorder,
        L1Penalty(0.1, mode=mode),
        L2Penalty(0.2, mode=mode, schedule=Linear(0.0, 1.0, 10)),
        L1Penalty(0.01, select="network.head.*", mode=mode),
        logger=TensorBoardLogger(tmp_path),
        accumulate_grad_batches=accumulate,
        log_every_n_steps=2,
        max_epochs=4,
        plugins=plugins or None,
    )

    logged = scalars(tmp_path)
    steps = list(logged["train/loss"])
    assert steps
    for tag in ("reg/penalty", "reg/penalty/l1", "reg/penalty/l2", "reg/penalty/l1-1", "reg/penalty_ratio"):
        assert list(logged[tag]) == steps, tag
    per_epoch = -(-7 // accumulate)
    for step in steps:
        epoch, window = divmod(step, per_epoch)
        batches = range(epoch * 7, epoch * 7 + 7)[window * accumulate :][:accumulate]
        weights = recorder.weights[batches[0]]
        l1 = 0.1 * sum(w.double().abs().sum().item() for w in weights)
        l2 = 0.2 * min(step / 10, 1.0) * sum(w.double().square().sum().item() for w in weights)
        head = 0.01 * weights[-1].double().abs().sum().item()
        # Lightning's losses are divided by the window, also in a short last one.
        data_loss = sum(recorder.losses[batch] for batch in batches) * accumulate / len(batches)
        assert logged["reg/penalty/l1"][step] == pytest.approx(l1, rel=1e-5)
        assert logged["reg/penalty/l2"][step] == pytest.approx(l2, rel=1e-5)
        assert logged["reg/penalty/l1-1"][step] == pytest.approx(head, rel=1e-5)
        assert logged["reg/penalty"][step] == pytest.approx(l1 + l2 + head, rel=1e-5)
        assert logged["reg/penalty_ratio"][step] == pytest.approx((l1 + l2 + head) / data_loss, rel=1e-3)


def test_two_manual_optimizers_log_one_value_a_batch(fit, tmp_path):
    class Logging(Gan):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.log("train/loss", 1.0)

    recorder = Recorder()
    fit(
        recorder, L1Penalty(0.1, mode="grad"), module=Logging(), logger=TensorBoardLogger(tmp_path), log_every_n_steps=2
    )

    logged = scalars(tmp_path)
    assert list(logged["reg/penalty/l1"]) == list(logged["train/loss"])
    for step, value in logged["reg/penalty/l1"].items():
        assert value == pytest.approx(0.1 * sum(w.abs().sum().item() for w in recorder.weights[step]), rel=1e-5)
    assert "reg/penalty_ratio" not in logged


@both_modes
def test_the_last_of_many_evaluations_in_one_step_is_logged_as_for_the_loss(fit, tmp_path, mode):
    module = Regressor(lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=5))

    fit(L1Penalty(0.1, mode=mode), module=module, logger=TensorBoardLogger(tmp_path), max_epochs=1)

    logged = scalars(tmp_path)
    for step, ratio in logged["reg/penalty_ratio"].items():
        assert ratio == pytest.approx(logged["reg/penalty"][step] / logged["train/loss"][step], rel=1e-5)


def test_a_resumed_run_goes_on_with_the_step_axis(trainer_of, tmp_path):
    for epochs, checkpoint in ((1, None), (2, tmp_path / "last.ckpt")):
        trainer = trainer_of(L1Penalty(0.1), logger=TensorBoardLogger(tmp_path, version=0), max_epochs=epochs)
        trainer.fit(Regressor(), loader(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    assert sorted(scalars(tmp_path)["reg/penalty"]) == list(range(14))


@both_modes
def test_a_hook_that_stops_training_leaves_no_old_value_at_the_last_step(fit, tmp_path, mode):
    class Stopping(Regressor):
        def on_train_batch_end(self, outputs, batch, batch_idx):  # after the hooks of callbacks
            self.trainer.should_stop = batch_idx == 3

    fit(L1Penalty(0.1, mode=mode), module=Stopping(), logger=TensorBoardLogger(tmp_path), log_every_n_steps=3)

    logged = scalars(tmp_path)
    assert list(logged["train/loss"]) == [2, 3]
    assert list(logged["reg/penalty"]) == [2]


@pytest.mark.twin
def test_any_logger_gets_the_values(fit, tmp_path):
    fit(L1Penalty(0.1), logger=CSVLogger(tmp_path))

    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"reg/penalty", "reg/penalty/l1", "reg/penalty_ratio"} <= set(header)


@pytest.mark.twin
@both_modes
def test_checkpoints_and_early_stopping_can_monitor_a_penalty_from_the_first_epoch_on(fit, tmp_path, mode):
    checkpoint = ModelCheckpoint(tmp_path, monitor="reg/penalty", filename="{epoch}")
    stopping = EarlyStopping("reg/penalty/l2", patience=2, check_on_train_epoch_end=True)

    # Fewer batches in an epoch than Lightning's logging interval.
    fit(
        L2Penalty(10.0, mode=mode),
        checkpoint,
        stopping,
        log_every_n_steps=50,
        enable_checkpointing=True,
        max_epochs=3,
        data=loader(),
    )

    assert checkpoint.best_model_path
    assert 0 < stopping.best_score < 1e3


def test_a_penalty_that_nothing_reads_is_not_computed(fit):
    class Counting(Penalty):
        calls = 0

        def penalty(self, weights):
            type(self).calls += 1
            return sum(weight.sum() for weight in weights)

        def add_gradient(self, grads, weights, factor):
            pass

    fit(Counting(0.1, mode="grad"), log_every_n_steps=5, max_epochs=1)

    assert Counting.calls == 3  # the first step, the fifth, the last of the epoch: of seven


def test_a_penalty_of_strength_zero_is_logged_as_zero(fit, tmp_path):
    fit(L1Penalty(0.0), L2Penalty(0.0, mode="grad"), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    logged = scalars(tmp_path)
    assert set(logged["reg/penalty/l1"].values()) == set(logged["reg/penalty/l2"].values()) == {0.0}


def test_the_loss_that_the_user_logs_is_without_penalty(fit, tmp_path):
    values = []
    for name, penalty in (("with", L1Penalty(0.1)), ("without", L1Penalty(0.0))):
        fit(penalty, logger=TensorBoardLogger(tmp_path / name), max_epochs=1)
        values.append(scalars(tmp_path / name)["train/loss"][0])

    assert values[0] == values[1]


class L1(Penalty):
    """A user's, under a name that is taken."""

    def penalty(self, weights):
        return sum(weight.abs().sum() for weight in weights)


@pytest.mark.parametrize("modes", [("loss", "grad"), ("grad", "loss")])
def test_two_classes_of_one_name_have_separate_tags_and_both_count(fit, tmp_path, modes):
    recorder = Recorder()
    penalties = L1Penalty(0.1, mode=modes[0]), L1(0.03, mode=modes[1])

    fit(recorder, *penalties, logger=TensorBoardLogger(tmp_path), max_epochs=1)

    logged = scalars(tmp_path)
    for step, weights in enumerate(recorder.weights):
        norm = sum(weight.abs().sum().item() for weight in weights)
        assert logged["reg/penalty/l1"][step] == pytest.approx(0.1 * norm, rel=1e-5)
        assert logged["reg/penalty/l1-1"][step] == pytest.approx(0.03 * norm, rel=1e-5)
        assert logged["reg/penalty"][step] == pytest.approx(0.13 * norm, rel=1e-5)


@both_modes
@pytest.mark.parametrize("batches", [7, 8, 9])
def test_the_ratio_at_the_end_of_an_epoch_covers_its_whole_last_window(trainer_of, mode, batches):
    recorder = Recorder()
    trainer = trainer_of(recorder, L1Penalty(0.1, mode=mode), accumulate_grad_batches=3, log_every_n_steps=1000)

    trainer.fit(Regressor(), loader(4 * batches))

    length = (batches - 1) % 3 + 1
    penalty = 0.1 * sum(weight.abs().sum().item() for weight in recorder.weights[-length])
    data_loss = sum(recorder.losses[-length:]) * 3 / length  # Lightning's losses are divided by the window
    assert trainer.callback_metrics["reg/penalty"].item() == pytest.approx(penalty, rel=1e-5)
    assert trainer.callback_metrics["reg/penalty_ratio"].item() == pytest.approx(penalty / data_loss, rel=1e-5)
