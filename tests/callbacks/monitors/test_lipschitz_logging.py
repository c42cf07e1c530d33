"""When, under which tags and to which loggers the Lipschitz monitor writes, and what it refuses before training."""

import csv
import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_reg import LipschitzMonitor, RegularizationMonitor
from tests.callbacks.monitors.lipschitz import Passing
from tests.event_files import scalars, values_in
from tests.models import Gan, Regressor, Silent, Untrainable, loader

OVERALL = {f"reg/lipschitz_{name}" for name in ("lower", "upper", "log10", "gap")}
LAYERS = {"reg.lipschitz/network.0", "reg.lipschitz/network.2"}


def written(folder, tag="reg/lipschitz_lower"):
    return list(scalars(folder)[tag])


@pytest.mark.parametrize(
    ("settings", "lower", "upper"),
    [
        ({"every_n_steps": 1}, [0, 4, 6, 9, 13, 14, 19, 20, 24, 27], [0, 6, 13, 20, 27]),
        ({"every_n_steps": 1, "every_n_epochs": 2}, [0, 4, 9, 13, 14, 19, 24, 27], [0, 13, 27]),
        ({"every_n_steps": 1, "every_n_epochs": 3}, [0, 4, 9, 14, 19, 20, 24, 27], [0, 20, 27]),
        ({"every_n_steps": 10}, [0, 9, 13, 19, 20, 27], [0, 13, 20, 27]),
        ({"every_n_steps": 15}, [0, 14, 20, 27], [0, 20, 27]),
        ({}, [0, 27], [0, 27]),
    ],
)
def test_lower_bounds_come_at_logging_steps_and_upper_ones_at_the_end_of_epochs(fit, tmp_path, settings, lower, upper):
    fit(
        LipschitzMonitor(**settings),
        module=Passing(),
        logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=5,
        max_epochs=4,
    )

    logged = scalars(tmp_path)
    assert list(logged["reg/lipschitz_lower"]) == lower
    for tag in (OVERALL | LAYERS) - {"reg/lipschitz_lower"}:
        assert list(logged[tag]) == upper, tag


@pytest.mark.parametrize("make", [Passing, Gan], ids=["automatic", "two manual optimizers"])
def test_steps_agree_with_other_monitors(fit, tmp_path, make):
    target = "generator" if make is Gan else None

    fit(
        LipschitzMonitor(target=target, every_n_steps=1),
        RegularizationMonitor(),
        module=make(),
        logger=TensorBoardLogger(tmp_path),
    )

    assert written(tmp_path) == written(tmp_path, "reg/weight_norm") == list(range(14))


@pytest.mark.parametrize("settings", [{"max_steps": 9, "max_epochs": -1}, {"max_epochs": 3, "limit_train_batches": 3}])
def test_the_last_step_is_written_however_training_ends(fit, tmp_path, settings):
    fit(LipschitzMonitor(), module=Passing(), logger=TensorBoardLogger(tmp_path), log_every_n_steps=50, **settings)

    for tag in OVERALL | LAYERS:
        assert written(tmp_path, tag) == [0, 8], tag


def test_the_last_step_of_a_run_that_stops_itself_is_written(fit, tmp_path):
    class Stopping(Passing):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = batch_idx == 3

    fit(LipschitzMonitor(), module=Stopping(), logger=TensorBoardLogger(tmp_path), log_every_n_steps=50)

    assert written(tmp_path) == written(tmp_path, "reg/lipschitz_upper") == [0, 3]


def test_a_resumed_run_goes_on_with_the_intervals(trainer_of, tmp_path):
    for epochs, checkpoint in ((1, None), (3, tmp_path / "last.ckpt")):
        trainer = trainer_of(
            LipschitzMonitor(every_n_steps=10),
            logger=TensorBoardLogger(tmp_path, version=0),
            max_epochs=epochs,
            log_every_n_steps=5,
        )
        trainer.fit(Passing(), loader(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    # Steps 6 and 7 end and begin a run.
    assert sorted(scalars(tmp_path)["reg/lipschitz_lower"]) == [0, 6, 7, 9, 13, 19, 20]


def test_two_fits_of_one_monitor_are_two_runs(trainer_of, tmp_path):
    monitor = LipschitzMonitor()
    for version in range(2):
        trainer_of(monitor, logger=TensorBoardLogger(tmp_path, version=version)).fit(Passing(), loader())
        assert written(tmp_path / "lightning_logs" / f"version_{version}") == [0, 13]


def test_checkpoints_and_early_stopping_can_use_the_bounds(trainer_of, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="reg/lipschitz_upper", filename="{epoch}")
    stopping = EarlyStopping("reg/lipschitz_lower", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    trainer = trainer_of(
        LipschitzMonitor(every_n_steps=1),
        checkpoint,
        stopping,
        logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=50,
        enable_checkpointing=True,
        max_epochs=9,
    )

    trainer.fit(Passing(), loader())

    assert trainer.current_epoch == 2
    assert {name for name in trainer.callback_metrics if name.startswith("reg")} == OVERALL
    for tag in OVERALL:
        assert trainer.callback_metrics[tag].item() == pytest.approx(scalars(tmp_path)[tag][13], rel=1e-6)
    assert checkpoint.best_model_path


@pytest.mark.parametrize("prog_bar", [False, True])
def test_both_bounds_are_in_the_progress_bar_on_request(trainer_of, tmp_path, prog_bar):
    trainer = trainer_of(LipschitzMonitor(prog_bar=prog_bar), logger=TensorBoardLogger(tmp_path))

    trainer.fit(Passing(), loader())

    shown = {"reg/lipschitz_lower", "reg/lipschitz_upper"}
    assert {name for name in trainer.progress_bar_metrics if name.startswith("reg")} == (shown if prog_bar else set())


def test_every_logger_gets_the_numbers(fit, tmp_path):
    loggers = [
        CSVLogger(tmp_path / "csv"),
        TensorBoardLogger(tmp_path / "tb", prefix="p"),
        TensorBoardLogger(tmp_path / "t2"),
    ]

    fit(LipschitzMonitor(every_n_steps=1), module=Passing(), logger=loggers, log_every_n_steps=5)

    logged = scalars(tmp_path / "tb")
    with next((tmp_path / "csv").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    for tag in OVERALL | LAYERS:
        expected = {step: pytest.approx(value, rel=1e-6) for step, value in logged[f"p-{tag}"].items()}
        assert {int(row["step"]): float(row[tag]) for row in rows if row[tag]} == expected
        assert scalars(tmp_path / "t2")[tag] == expected


@pytest.mark.parametrize("layout", [True, False])
def test_charts_are_written_unless_they_are_not_wanted(fit, tmp_path, layout):
    fit(LipschitzMonitor(layout=layout), module=Passing(), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    assert any(value.tag == "custom_scalars__config__" for _, value in values_in(tmp_path)) == layout


def test_barebones_training_is_left_alone(fit, caplog):
    class Quiet(Silent):
        def forward(self, inputs):
            return self.network(inputs)

    settings = {"barebones": True, "logger": None, "enable_checkpointing": None, "enable_progress_bar": None}
    settings |= {"enable_model_summary": None, "log_every_n_steps": None}

    with caplog.at_level("INFO"):
        fit(LipschitzMonitor(), module=Quiet(), **settings)

    assert "LipschitzMonitor is off" in caplog.text


def test_a_fast_dev_run_runs(fit):
    fit(LipschitzMonitor(every_n_steps=1), module=Passing(), fast_dev_run=True, logger=True)


def test_runs_without_training_are_left_alone(trainer_of, tmp_path):
    class Failing(nn.Module):
        def forward(self, inputs):
            assert not inputs.requires_grad
            return inputs[:, :2]

    monitor = LipschitzMonitor(target="nothing of that name")
    module = Passing(Failing)
    trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path))

    trainer.validate(module, loader())
    trainer.test(module, loader())
    trainer.predict(module, loader())

    assert not [tag for tag in scalars(tmp_path) if tag.startswith("reg")]


def test_the_sanity_check_is_left_alone(trainer_of, tmp_path):
    trainer = trainer_of(LipschitzMonitor(), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    trainer.fit(Passing(), loader(), loader())

    assert written(tmp_path) == [0, 6]


def attention():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, inputs):
            hidden = self.embed(inputs).unsqueeze(1)
            return self.head(self.attention(hidden, hidden, hidden)[0].squeeze(1))

    return Block()


def test_operations_without_a_bound_are_named_once_with_the_remedies(fit, tmp_path):
    with pytest.warns(UserWarning, match="knows no upper bound") as caught:
        fit(LipschitzMonitor(every_n_steps=1), module=Passing(attention), logger=TensorBoardLogger(tmp_path))

    (message,) = [str(item.message) for item in caught if "upper bound" in str(item.message)]
    assert "attention" in message
    assert "`target=`" in message
    assert "register_lipschitz_rule" in message
    logged = scalars(tmp_path)
    assert set(logged["reg/lipschitz_upper"].values()) == set(logged["reg/lipschitz_gap"].values()) == {math.inf}
    assert all(map(math.isfinite, logged["reg/lipschitz_lower"].values()))
    assert all(map(math.isfinite, logged["reg.lipschitz/network.embed"].values()))


def pre_norm():
    block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(5, 8), nn.Unflatten(1, (1, 8)), block, nn.Flatten(), nn.Linear(8, 2))


def test_a_pre_norm_transformer_has_a_bound_with_its_logarithm_and_layers(fit, tmp_path):
    fit(LipschitzMonitor(every_n_steps=1), module=Passing(pre_norm), logger=TensorBoardLogger(tmp_path))

    logged = scalars(tmp_path)
    upper, logarithm = logged["reg/lipschitz_upper"], logged["reg/lipschitz_log10"]
    assert {step: 10**value for step, value in logarithm.items()} == pytest.approx(upper, rel=1e-4)
    assert all(1 < value < math.inf for value in upper.values())
    layers = {tag.partition("/")[2] for tag in logged if tag.startswith("reg.lipschitz/")}
    inside = ("norm1", "self_attn", "norm2", "linear1", "linear2")
    assert layers == {"network.0", "network.4", *(f"network.2.{name}" for name in inside)}
    assert all(math.isfinite(value) for name in layers for value in logged[f"reg.lipschitz/{name}"].values())


def test_no_logger_is_an_error_before_training(fit):
    with pytest.raises(MisconfigurationException, match="LipschitzMonitor needs a logger to write to"):
        fit(LipschitzMonitor(), module=Untrainable())


def test_two_monitors_of_one_target_are_an_error_before_training(fit):
    with pytest.raises(MisconfigurationException, match="Two LipschitzMonitors have target='network'"):
        fit(LipschitzMonitor(target="network"), LipschitzMonitor(target="network"), module=Untrainable(), logger=True)


class Never(Passing):
    """Fails in its first training step: what is wrong must be found before."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("a training step has run")


class TwoInputs(Never):
    def forward(self, inputs, mask):
        return self.network(inputs * mask)


class Distribution(Never):
    def forward(self, inputs):
        return torch.distributions.Normal(self.network(inputs), 1)


def integers(batch):
    return batch[0].long()


def wrong_shape(batch):
    return batch[0][:, :3]


@pytest.mark.parametrize(
    ("module", "settings", "error", "message"),
    [
        (
            Never,
            {"target": "netwrk"},
            ValueError,
            "`target` 'netwrk' is not a module of Never. Nearest names: network, ",
        ),
        pytest.param(
            Untrainable,
            {},
            MisconfigurationException,
            r"Untrainable has no `forward`. Pass `target=`.*, e.g. .*'network'",
            marks=pytest.mark.twin,
        ),
        (TwoInputs, {}, MisconfigurationException, r"TwoInputs.forward takes \['inputs', 'mask'\]. Pass `target=`"),
        (Distribution, {}, MisconfigurationException, "cannot evaluate 'Distribution' .* got Normal"),
        (
            Never,
            {"input_transform": integers},
            TypeError,
            "`input_transform` must .* got a tensor of torch.int64",
        ),
        (Never, {"input_transform": len}, TypeError, "`input_transform` must return .* got int"),
        (Never, {"target": "network.2"}, MisconfigurationException, r"'network.2' on torch.float32 of shape \(4, 5\)"),
        (Never, {"input_transform": wrong_shape}, MisconfigurationException, r"of shape \(4, 3\).*input_transform"),
    ],
)
def test_a_target_that_is_not_a_function_of_a_tensor_of_the_batch_is_an_error_before_the_first_step(
    fit, tmp_path, module, settings, error, message
):
    with pytest.raises(error, match=message):
        fit(LipschitzMonitor(**settings), module=module(), logger=TensorBoardLogger(tmp_path))


def test_a_batch_without_numbers_is_an_error_before_the_first_step(fit, tmp_path):
    tokens = torch.utils.data.DataLoader(torch.arange(8), batch_size=4)

    with pytest.raises(MisconfigurationException, match="no floating-point tensor in the batch, which is a Tensor"):
        fit(LipschitzMonitor(), module=Never(), data=tokens, logger=TensorBoardLogger(tmp_path))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"target": 3}, TypeError, "`target` must be the name of a module or None, got 3"),
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` must be an int >= 1, got 0"),
        ({"every_n_steps": 1.5}, TypeError, "`every_n_steps` must be an int >= 1, got 1.5"),
        ({"samples": 0}, ValueError, "`samples` must be an int >= 1, got 0"),
        ({"input_transform": "first"}, TypeError, "`input_transform` must be a function of a batch or None"),
        ({"prog_bar": 1}, TypeError, "`prog_bar` must be True or False, got 1"),
        ({"layout": None}, TypeError, "`layout` must be True or False, got None"),
    ],
)
def test_bad_arguments_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        LipschitzMonitor(**settings)


def test_a_function_of_the_batch_comes_from_yaml_by_its_name(callback_from_yaml):
    built = callback_from_yaml(
        "class_path: lightning_reg.LipschitzMonitor\ninit_args:\n  input_transform: torch.nn.functional.relu\n"
    )

    assert built.input_transform(-torch.ones(1)) == 0
    assert isinstance(built, LipschitzMonitor)


def test_no_user_metric_may_have_a_name_that_is_taken():
    from lightning_reg.metrics import WeightNorm

    with pytest.raises(ValueError, match=r"other than .*lipschitz_upper.* got 'lipschitz_lower'"):
        RegularizationMonitor(metrics={"lipschitz_lower": WeightNorm()})


def test_another_module_is_called_by_its_type_in_messages(fit, tmp_path):
    class Bare(Regressor):
        def __init__(self):
            super().__init__()
            self.network.extra = nn.ModuleList([nn.Linear(2, 2)])

    with pytest.raises(MisconfigurationException, match="ModuleList has no `forward`"):
        fit(LipschitzMonitor(target="network.extra"), module=Bare(), logger=TensorBoardLogger(tmp_path))
