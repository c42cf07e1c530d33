"""The hyperparameters of a run, as TensorBoard reads them: the first summary under a tag counts."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams import metadata

from lightning_reg import L1Penalty, L2Penalty, RegularizationMonitor
from tests.event_files import values_in
from tests.models import Quartic, Regressor, loader


class Tuned(Regressor):
    def __init__(self, width=7, layers=(1, 2), nested=None, function=torch.relu, flag=True):
        super().__init__()
        self.save_hyperparameters()


class Data(LightningDataModule):
    def __init__(self, size=28):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return loader(self.hparams.size)


def first(folder, tag):
    """Return the metadata of the first summary under `tag`, if it belongs to the plugin."""
    for _, value in values_in(folder):
        if value.tag == tag:
            plugin = value.metadata.plugin_data
            return plugin.content if plugin.plugin_name == metadata.PLUGIN_NAME else None
    return None


def hyperparameters(folder):
    info = metadata.parse_session_start_info_plugin_data(first(folder, metadata.SESSION_START_INFO_TAG))
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}


@pytest.mark.parametrize("default_hp_metric", [True, False])
def test_settings_of_callbacks_join_the_settings_of_module_and_data(trainer_of, tmp_path, default_hp_metric):
    trainer = trainer_of(
        L1Penalty(0.01, select=["*.encoder.*"]),
        L1Penalty(0.03),
        Quartic(0.1, mode="grad"),
        RegularizationMonitor(),
        logger=TensorBoardLogger(tmp_path, default_hp_metric=default_hp_metric),
        max_epochs=1,
    )

    trainer.fit(Tuned(nested={"depth": 3}), Data())

    assert hyperparameters(tmp_path) == {
        "width": 7,
        "layers": "(1, 2)",
        "nested/depth": 3,
        "function": str(torch.relu),
        "flag": 1,
        "size": 28,
        "l1.strength": 0.01,
        "l1.mode": "loss",
        "l1.select": "['*.encoder.*']",
        "l1-1.strength": 0.03,
        "l1-1.mode": "loss",
        "quartic.strength": 0.1,
        "quartic.mode": "grad",
    }
    assert first(tmp_path, metadata.EXPERIMENT_TAG) is None  # so TensorBoard looks at what the runs have


def test_modules_without_hyperparameters_show_the_callbacks(fit, tmp_path):
    fit(L2Penalty(0.1), RegularizationMonitor(), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    assert hyperparameters(tmp_path) == {"l2.strength": 0.1, "l2.mode": "loss"}


def test_without_ours_the_page_is_as_lightning_makes_it(fit, tmp_path):
    fit(
        L2Penalty(0.1),
        RegularizationMonitor(hparams=False),
        module=Tuned(),
        logger=TensorBoardLogger(tmp_path),
        max_epochs=1,
    )

    assert set(hyperparameters(tmp_path)) == {"width", "layers", "nested", "function", "flag"}
    experiment = metadata.parse_experiment_plugin_data(first(tmp_path, metadata.EXPERIMENT_TAG))
    assert [info.name.tag for info in experiment.metric_infos] == ["hp_metric"]


@pytest.mark.parametrize("written", [True, False])
def test_the_charts_are_written_unless_the_users_own_shall_stay(fit, tmp_path, written):
    fit(RegularizationMonitor(layout=written), logger=TensorBoardLogger(tmp_path), max_epochs=1)

    assert any(value.tag == "custom_scalars__config__" for _, value in values_in(tmp_path)) == written
