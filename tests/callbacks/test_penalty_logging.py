"""What a user sees: the plan before training, and what TensorBoard and other callbacks read."""

import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util
from torch import nn

from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty, Linear, Penalty
from tests.callbacks.test_penalty_training import Gan
from tests.models import Regressor, loader

both_modes = pytest.mark.parametrize("mode", ["loss", "grad"])


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Read every scalar of the event files below `folder`: tag -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    steps = found.setdefault(value.tag, {})
                    assert event.step not in steps, f"{value.tag} written twice at step {event.step}"
                    steps[event.step] = tensor_util.make_ndarray(value.tensor).item()
    return found


def texts(folder: Path) -> dict[str, str]:
    return {
        value.tag: tensor_util.make_ndarray(value.tensor)[0].decode()
        for file in folder.rglob("events.out.tfevents.*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


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
def test_logged_values_are_those_of_the_written_objective(fit, tmp_path, mode, accumulate, scale):
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
def test_of_many_evaluations_in_one_step_the_last_is_logged_as_that_of_the_loss_is(fit, tmp_path, mode):
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


def test_any_logger_gets_the_values(fit, tmp_path):
    fit(L1Penalty(0.1), logger=CSVLogger(tmp_path))

    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"reg/penalty", "reg/penalty/l1", "reg/penalty_ratio"} <= set(header)


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


def test_a_penalty_that_nobody_reads_is_not_computed(fit):
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


def plan_of(caplog: pytest.LogCaptureFixture) -> str:
    plans = [record.message for record in caplog.records if record.message.startswith("Regularization plan")]
    assert len(plans) == 1
    return plans[0]


def test_one_table_says_what_happens_to_each_weight_or_why_nothing_does(fit, tmp_path, caplog):
    module = Regressor()
    module.network.conv.weight.requires_grad_(requires_grad=False)

    with caplog.at_level(logging.INFO):
        fit(
            L1Penalty(0.1, select=["network.encoder.*", "network.conv.*"]),
            ElasticNetPenalty(0.02, select="network.encoder.*", mode="grad"),
            module=module,
            logger=TensorBoardLogger(tmp_path),
        )

    plan = plan_of(caplog)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in plan.splitlines()[1:]}
    assert rows["network.encoder.weight"] == "7 x 5 l1 0.1 + elastic_net 0.02"
    assert rows["network.encoder.bias"] == "7 none: 1 < 2 dimensions"
    assert rows["network.conv.weight"] == "3 x 1 x 3 l1 0.1 (not trained at the moment)"
    assert rows["network.head.weight"] == "2 x 21 none: matches no pattern of `select`"
    assert "ElasticNetPenalty(alpha=0.02, l1_ratio=0.5, select='network.encoder.*', mode='grad'" in plan
    text = texts(tmp_path)["reg/setup/text_summary"]
    assert "| `network.encoder.weight` | 7 x 5 | l1 0.1 + elastic_net 0.02 |" in text


def test_a_long_plan_is_cut_on_the_console_only(fit, tmp_path, caplog):
    module = Regressor()
    module.many = nn.ParameterList(nn.Parameter(torch.zeros(1, 1)) for _ in range(100))

    with caplog.at_level(logging.INFO):
        fit(L1Penalty(0.1), module=module, logger=TensorBoardLogger(tmp_path))

    assert "many.99" not in plan_of(caplog)
    assert "and 48 more weights" in plan_of(caplog)
    assert "many.99" in texts(tmp_path)["reg/setup/text_summary"]


@pytest.mark.parametrize("penalty", [L2Penalty(0.1), ElasticNetPenalty(0.1)])
def test_l2_beside_weight_decay_is_warned_of_once(fit, penalty):
    module = Regressor(lambda parameters: torch.optim.SGD(parameters, lr=0.01, weight_decay=0.25))

    expected = "weight_decay=0.25 both shrink the same weights"
    with pytest.warns(UserWarning, match=expected) as warnings:
        fit(penalty, module=module)

    assert sum(expected in str(warning.message) for warning in warnings) == 1


@pytest.mark.parametrize(
    "penalty",
    [L1Penalty(0.1), ElasticNetPenalty(0.1, 1.0), L2Penalty(0.0), L2Penalty(0.1, select="network.head.*")],
    ids=repr,
)
def test_no_warning_where_weight_decay_does_not_overlap(fit, penalty):
    class TwoGroups(Regressor):
        def configure_optimizers(self):
            head = list(self.network.head.parameters())
            others = [parameter for name, parameter in self.named_parameters() if "head" not in name]
            decay = 0.0 if isinstance(penalty, L2Penalty) and penalty.select else 0.25
            return torch.optim.SGD([{"params": head, "weight_decay": decay}, {"params": others, "weight_decay": 0.25}])

    fit(penalty, module=TwoGroups())  # warnings are errors
