"""When, under which tags and to which loggers the monitor writes."""

import csv

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from lightning_reg import L2Penalty, LipschitzMonitor, RegularizationMonitor, WeightDecay
from lightning_reg.metrics import WeightNorm
from tests.event_files import histograms, layers, scalars, values_in
from tests.models import Gan, Regressor, Silent, Untrainable, loader

SUMMARY = {
    f"reg/{metric}{statistic}"
    for metric in ("weight_norm", "sparsity", "spectral_norm")
    for statistic in ("", "_min", "_median", "_max")
}
LAYERS = {
    f"reg.{metric}/network.{layer}"
    for metric in ("weight_norm", "sparsity", "spectral_norm")
    for layer in ("encoder", "conv", "head")
}


class LoggingGan(Gan):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.log("train/loss", 1.0)


@pytest.mark.parametrize(
    ("make", "settings"),
    [(Regressor, {}), (Regressor, {"accumulate_grad_batches": 4}), (LoggingGan, {})],
    ids=["every batch", "accumulation", "two manual optimizers"],
)
def test_every_tag_is_written_once_a_step_at_the_steps_of_the_loss(fit, tmp_path, make, settings):
    fit(RegularizationMonitor(per_layer=True), module=make(), logger=TensorBoardLogger(tmp_path), **settings)

    logged = scalars(tmp_path)  # fails if something is written twice at a step
    steps = list(logged["train/loss"])
    assert steps == list(range(4 if settings else 14))
    tags = [tag for tag in logged if tag.startswith("reg")]
    assert set(tags) >= SUMMARY
    for tag in tags:
        assert list(logged[tag]) == steps, tag
    assert list(histograms(tmp_path)["reg/weight_norm_over_layers"]) == steps


def test_at_a_slower_cadence_the_first_and_the_last_step_are_written_too(fit, tmp_path):
    fit(RegularizationMonitor(per_layer=True), logger=TensorBoardLogger(tmp_path), log_every_n_steps=5)

    logged = scalars(tmp_path)
    assert list(logged["train/loss"]) == [4, 9]
    for tag in SUMMARY | LAYERS:
        assert list(logged[tag]) == [0, 4, 9, 13], tag


@pytest.mark.parametrize("settings", [{"max_steps": 9, "max_epochs": -1}, {"max_epochs": 3, "limit_train_batches": 3}])
def test_the_last_step_is_written_however_training_ends(fit, tmp_path, settings):
    fit(RegularizationMonitor(per_layer=True), logger=TensorBoardLogger(tmp_path), log_every_n_steps=50, **settings)

    assert list(scalars(tmp_path)["reg/weight_norm"]) == [0, 8]


def test_the_last_step_of_a_run_that_stops_itself_is_written(fit, tmp_path):
    class Stopping(Regressor):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = batch_idx == 3

    fit(
        RegularizationMonitor(per_layer=True),
        module=Stopping(),
        logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=50,
    )

    assert list(scalars(tmp_path)["reg/weight_norm"]) == [0, 3]


def test_a_resumed_run_goes_on_with_the_step_axis(trainer_of, tmp_path):
    for epochs, checkpoint in ((1, None), (2, tmp_path / "last.ckpt"), (2, tmp_path / "last.ckpt")):
        trainer = trainer_of(
            RegularizationMonitor(per_layer=True),
            logger=TensorBoardLogger(tmp_path, version=0),
            max_epochs=epochs,
            log_every_n_steps=5,
        )
        trainer.fit(Regressor(), loader(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    assert sorted(scalars(tmp_path)["reg/weight_norm"]) == [0, 4, 6, 9, 13]


def test_two_fits_of_one_monitor_are_two_runs(trainer_of, tmp_path):
    monitor = RegularizationMonitor(per_layer=True)
    for version in range(2):
        trainer = trainer_of(monitor, logger=TensorBoardLogger(tmp_path, version=version), log_every_n_steps=50)
        trainer.fit(Regressor(), loader())
        assert list(scalars(tmp_path / "lightning_logs" / f"version_{version}")["reg/weight_norm"]) == [0, 13]


@pytest.mark.twin
def test_summary_numbers_reach_callbacks_and_numbers_of_layers_do_not(trainer_of, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="reg/weight_norm", filename="{epoch}")
    stopping = EarlyStopping("reg/sparsity", patience=2, check_on_train_epoch_end=True)
    trainer = trainer_of(
        RegularizationMonitor(per_layer=True),
        checkpoint,
        stopping,
        logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=50,
        enable_checkpointing=True,
        max_epochs=9,
    )
    module = Regressor()

    trainer.fit(module, loader())

    assert trainer.current_epoch == 3  # sparsity stays at 0
    assert {name for name in trainer.callback_metrics if name.startswith("reg")} == SUMMARY
    matrices = [weight for weight in module.parameters() if weight.ndim > 1]
    norm = torch.cat([weight.flatten() for weight in matrices]).norm().item()
    assert trainer.callback_metrics["reg/weight_norm"].item() == pytest.approx(norm, rel=1e-6)
    assert checkpoint.best_model_path


@pytest.mark.twin
def test_every_other_logger_gets_the_numbers_through_log_metrics(fit, tmp_path):
    class Own(Logger):
        name, version, written = "own", 0, []

        def log_metrics(self, metrics, step=None):
            self.written.append((step, metrics))

        def log_hyperparams(self, params, *args, **kwargs):
            pass

    loggers = [CSVLogger(tmp_path / "csv"), Own(), TensorBoardLogger(tmp_path / "tb")]

    fit(RegularizationMonitor(per_layer=True), logger=loggers, log_every_n_steps=5)

    logged = scalars(tmp_path / "tb")
    with next((tmp_path / "csv").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    for tag in SUMMARY | LAYERS:
        expected = {step: pytest.approx(value, rel=1e-6) for step, value in logged[tag].items()}
        assert {int(row["step"]): float(row[tag]) for row in rows if row[tag]} == expected
        assert {step: float(metrics[tag]) for step, metrics in Own.written if tag in metrics} == expected


def test_the_prefix_of_a_logger_comes_before_every_tag(fit, tmp_path):
    fit(
        RegularizationMonitor(histograms=True, per_layer=True),
        LipschitzMonitor(target="network"),
        L2Penalty(0.1),
        logger=TensorBoardLogger(tmp_path, prefix="p"),
        max_epochs=1,
    )

    tags = {value.tag for _, value in values_in(tmp_path)}
    ours = {tag for tag in tags if "reg" in tag}
    assert {f"p-{tag}" for tag in SUMMARY | LAYERS} <= ours
    assert "p-reg/setup/text_summary" in ours  # of texts, too
    assert all(tag.startswith("p-reg") for tag in ours)


def test_no_logger_is_an_error_before_training(fit):
    with pytest.raises(MisconfigurationException, match="RegularizationMonitor needs a logger to write to"):
        fit(RegularizationMonitor(per_layer=True), module=Untrainable())


def test_two_monitors_must_have_metrics_of_different_names(fit, tmp_path):
    with pytest.raises(MisconfigurationException, match="Two RegularizationMonitors log a metric 'weight_norm'"):
        fit(
            RegularizationMonitor(per_layer=True),
            RegularizationMonitor(select="*.head.*"),
            module=Untrainable(),
            logger=True,
        )

    head = RegularizationMonitor(metrics={"head_norm": WeightNorm()}, select="*.head.*")
    fit(RegularizationMonitor(per_layer=True), head, logger=TensorBoardLogger(tmp_path))
    logged = scalars(tmp_path)
    assert logged["reg/head_norm"] == logged["reg.weight_norm/network.head"]


def test_barebones_training_is_left_alone(fit, caplog):
    settings = {"barebones": True, "logger": None, "enable_checkpointing": None, "enable_progress_bar": None}
    settings |= {"enable_model_summary": None, "log_every_n_steps": None}

    with caplog.at_level("INFO"):
        fit(RegularizationMonitor(per_layer=True), module=Silent(), **settings)

    assert "RegularizationMonitor is off" in caplog.text


def test_a_fast_dev_run_runs(fit):
    fit(RegularizationMonitor(histograms=True), fast_dev_run=True, logger=True)


class Deep(Regressor):
    """A network of many layers."""

    def __init__(self, depth):
        super().__init__()
        self.network = nn.Sequential(*[nn.Linear(5, 5) for _ in range(depth)], nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("depth", "per_layer", "written", "in_tensors"),
    [(64, "auto", 0, 65), (64, True, 65, 65), (3, "auto", 0, 4), (3, False, 0, 0), (64, "network.6?.*", 5, 65)],
)
def test_all_layers_are_written_as_one_tensor_and_as_scalars_on_request(
    fit, tmp_path, depth, per_layer, written, in_tensors
):
    fit(
        RegularizationMonitor(per_layer=per_layer, updates=True),
        module=Deep(depth),
        logger=TensorBoardLogger(tmp_path),
        max_epochs=1,
    )

    logged, tensors = scalars(tmp_path), layers(tmp_path)
    names = {f"network.{index}" for index in range(depth + 1)}
    for metric in ("weight_norm", "sparsity", "spectral_norm", "update_ratio", "decay_ratio"):
        tags = {tag for tag in logged if tag.startswith(f"reg.{metric}/")}
        assert len(tags) == written
        assert set(tensors.get(metric, {})) == (names if in_tensors else set())
        for tag in tags:
            assert logged[tag] == tensors[metric][tag.partition("/")[2]]
    (_, *_, last) = histograms(tmp_path)["reg/weight_norm_over_layers"].values()
    assert last[:, 2].sum() == depth + 1


class OneZero(Callback):
    """Leaves a single zero, after the step 3 only: the next step moves it away."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            with torch.no_grad():
                pl_module.network.encoder.weight[0, 0] = 0.0


def test_histograms_over_layers_begin_where_one_of_them_is_not_zero(fit, tmp_path):
    fit(RegularizationMonitor(), logger=TensorBoardLogger(tmp_path / "dense"))
    fit(OneZero(), RegularizationMonitor(), logger=TensorBoardLogger(tmp_path / "zero"))

    assert set(histograms(tmp_path / "dense")) == {"reg/weight_norm_over_layers", "reg/spectral_norm_over_layers"}
    assert [step for step, value in scalars(tmp_path / "zero")["reg/sparsity"].items() if value] == [3]
    assert list(histograms(tmp_path / "zero")["reg/sparsity_over_layers"]) == list(range(3, 14))


def test_two_hundred_layers_are_few_tags_and_few_bytes(fit, tmp_path):
    def written(steps):
        folder = tmp_path / str(steps)
        monitors = [RegularizationMonitor(updates=True), LipschitzMonitor(target="network")]
        fit(*monitors, module=Deep(199), logger=TensorBoardLogger(folder), max_steps=steps, log_every_n_steps=1)
        assert len(scalars(folder)) < 40
        return sum(file.stat().st_size for file in folder.rglob("events.out.tfevents.*"))

    assert (written(3) - written(1)) / 2 < 20_000


def test_layers_that_thaw_in_mid_run_keep_their_names(fit, tmp_path):
    class Thawing(Deep):
        def __init__(self):
            super().__init__(2)
            self.network[0].requires_grad_(False)

        def on_train_epoch_start(self):
            self.network[0].requires_grad_(self.current_epoch > 0)

    fit(RegularizationMonitor(), module=Thawing(), logger=TensorBoardLogger(tmp_path))

    found = layers(tmp_path)["weight_norm"]
    assert list(found["network.0"]) == list(range(7, 14))
    assert list(found["network.1"]) == list(range(14))


def test_each_step_is_one_call_for_all_callbacks(fit, tmp_path):
    class Counting(Logger):
        name, version = "own", 0

        def __init__(self):
            super().__init__()
            self.written = []

        def log_metrics(self, metrics, step=None):
            self.written.append((step, {tag for tag in metrics if tag.startswith("reg")}))

        def log_hyperparams(self, params, *args, **kwargs):
            pass

    logger = Counting()
    callbacks = [L2Penalty(0.1), WeightDecay(0.1), RegularizationMonitor(), LipschitzMonitor(target="network")]
    fit(*callbacks, logger=logger, log_every_n_steps=5)

    ours = [(step, tags) for step, tags in logger.written if tags]
    assert [step for step, _ in ours] == [0, 4, 9, 13]
    assert {"reg/penalty", "reg/weight_decay", "reg/weight_norm"} <= ours[1][1]
    assert {"reg/weight_norm", "reg/lipschitz_upper"} <= ours[3][1]


def test_values_logged_before_an_error_reach_the_loggers(fit, tmp_path):
    class Failing(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(RegularizationMonitor(), module=Failing(), logger=CSVLogger(tmp_path), log_every_n_steps=1)

    with next(tmp_path.rglob("metrics.csv")).open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["reg/weight_norm"]] == ["0", "1", "2"]


class Counting(WeightNorm.__base__):
    """Says how often it was asked."""

    def __init__(self):
        super().__init__(torch.zeros(1))

    def statistics(self, layers):
        type(self).calls += 1
        return torch.full((len(layers), 1), float(self.calls))

    def value(self, statistics):
        return statistics.squeeze(-1)


class Reading(Callback):
    """A user's own callback that names what it reads."""

    def __init__(self, monitor):
        self.monitor, self.found = monitor, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.found.append(trainer.callback_metrics[self.monitor].item())


@pytest.mark.parametrize(
    ("make", "looks"),
    [
        (lambda folder: Callback(), 4),  # after steps 0, 4, 9 and 13, the last, of fourteen
        (lambda folder: EarlyStopping("train/loss"), 4),
        (lambda folder: Reading("reg/counting_min"), 5),  # and 6, the end of an epoch
        (lambda folder: ModelCheckpoint(folder, filename="{reg/counting:.2f}"), 5),
    ],
    ids=["nobody", "of another value", "a callback", "a file name"],
)
def test_numbers_that_nothing_reads_are_not_computed(fit, tmp_path, make, looks):
    reader = make(tmp_path)
    Counting.calls = 0

    fit(
        RegularizationMonitor(metrics={"counting": Counting()}),
        reader,
        logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=5,
        enable_checkpointing=True,
    )

    assert Counting.calls == looks
    assert getattr(reader, "found", [3, 5]) == [3, 5]  # of the look at the epoch's last step


def test_a_scheduler_reads_current_values_at_the_end_of_each_epoch(fit, tmp_path):
    class Scheduled(Regressor):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "reg/counting"}}

    Counting.calls = 0
    monitor = RegularizationMonitor(metrics={"counting": Counting()})

    fit(monitor, module=Scheduled(), logger=TensorBoardLogger(tmp_path), log_every_n_steps=50)

    assert Counting.calls == 3  # after steps 0, 6 and 13


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"metrics": [WeightNorm()]}, TypeError, "`metrics` must be a mapping from names to torchmetrics.Metric"),
        ({"metrics": {"norm": len}}, TypeError, "`metrics` must be a mapping from names to torchmetrics.Metric"),
        ({"metrics": {}}, ValueError, "`metrics` must hold at least one metric"),
        ({"metrics": {"a/b": WeightNorm()}}, ValueError, "`metrics` must have names of letters, .* got 'a/b'"),
        ({"metrics": {"penalty": WeightNorm()}}, ValueError, "other than .*decay_ratio, .* got 'penalty'"),
        ({"metrics": {1: WeightNorm()}}, ValueError, "`metrics` must have names of letters, .* got 1"),
        ({"select": 3}, TypeError, "`include` must be a glob or a list of globs"),
        ({"per_layer": 3}, TypeError, "`include` must be a glob or a list of globs"),
        ({"histograms": 2}, TypeError, "`histograms` must be True or False, got 2"),
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` must be an int >= 1, got 0"),
        ({"layout": "yes"}, TypeError, "`layout` must be True or False, got 'yes'"),
        ({"hparams": None}, TypeError, "`hparams` must be True or False, got None"),
    ],
)
def test_bad_arguments_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        RegularizationMonitor(**settings)


@pytest.mark.parametrize("setting", ["select", "per_layer"])
def test_a_selection_that_matches_nothing_is_an_error_with_the_nearest_names(fit, tmp_path, setting):
    with pytest.raises(
        ValueError, match=r"'\*.encodr.\*' matches no parameter. Nearest names: .*network.encoder.weight"
    ):
        fit(RegularizationMonitor(**{setting: "*.encodr.*"}), module=Untrainable(), logger=TensorBoardLogger(tmp_path))
