"""The picture that loggers without TensorBoard's page get."""

import base64
import json
import re

import fsspec
import numpy as np
import pytest
from lightning.pytorch.loggers import (
    CometLogger,
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.loggers.neptune import NeptuneLogger
from PIL import Image

from lightning_reg import RegularizationMonitor
from tests.event_files import layers


class MLflow:
    def __init__(self, calls):
        self.calls = calls

    # As in mlflow.tracking.MlflowClient, 3.17.
    def log_image(  # noqa: PLR0913
        self, run_id, image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=None
    ):
        self.calls.append((run_id, artifact_file, image))


class Comet:
    def __init__(self, calls):
        self.calls = calls

    # As in comet_ml.CometExperiment, 3.58.
    def log_image(  # noqa: PLR0913
        self,
        image_data,
        name=None,
        overwrite=False,
        image_format="png",
        image_scale=1.0,
        image_shape=None,
        image_colormap=None,
        image_minmax=None,
        image_channels="last",
        copy_to_tmp=True,
        step=None,
        annotations=None,
        metadata=None,
    ):
        self.calls.append((step, name, image_data))


class Neptune:
    def __init__(self, calls):
        self.calls = calls

    def __getitem__(self, path):
        calls = self.calls

        class Handler:
            # As in neptune.handler.Handler, 1.14.
            def upload(self, value, *, wait=False, **kwargs):
                assert not kwargs
                calls.append((wait, path, value))

        return Handler()


def quiet(kind, calls=None, experiment=None, prefix=""):
    """Return a logger of Lightning's that has no service behind it."""

    def log_image(self, key, images, step=None, **kwargs):
        calls.append((step, key, *images))

    silent = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
    fake = dict.fromkeys(silent, lambda *args, **kwargs: None)
    fake |= {"name": "fake", "version": "0", "run_id": "7", "save_dir": None, "log_dir": None}
    fake |= {"_prefix": prefix, "experiment": experiment, "log_image": log_image, "__init__": lambda self: None}
    if kind is NeptuneLogger:
        fake["LOGGER_JOIN_CHAR"] = "/"  # newer versions of Lightning have only the class's name
    return type("Fake", (kind, Logger), fake)()


def test_the_folder_of_a_csv_logger_and_loggers_of_pictures_get_one_at_the_end(fit, tmp_path):
    calls = []
    services = [
        quiet(WandbLogger, calls),  # has a method of its own, which puts the prefix there
        quiet(MLFlowLogger, experiment=MLflow(calls), prefix="mine"),
        quiet(CometLogger, experiment=Comet(calls), prefix="mine"),
        quiet(NeptuneLogger, experiment=Neptune(calls), prefix="mine"),
        quiet(NeptuneLogger, experiment=Neptune(calls)),
    ]

    fit(RegularizationMonitor(), logger=[CSVLogger(tmp_path), *services])

    (file,) = tmp_path.rglob("reg.png")
    with Image.open(file) as saved:
        # Three layers by fourteen steps of three metrics: every step has its column.
        assert saved.format == "PNG"
        wide, high = saved.size
        assert wide >= 3 * 14
        assert high >= 3
        sparsity = saved.crop((200 + 168 + 24, 34, 200 + 168 + 24 + 168, 34 + 3 * 14))
        assert sparsity.getcolors() == [(168 * 42, (33, 145, 140))]  # constant
        norms = saved.crop((200, 34, 368, 34 + 3 * 14))
        assert {(68, 1, 84), (253, 231, 37)} <= {colour for _, colour in norms.getcolors(10_000)}
    assert [call[:2] for call in calls] == [
        (13, "reg/layers"),
        ("7", "mine-reg.png"),
        (13, f"mine{getattr(CometLogger, 'LOGGER_JOIN_CHAR', '_')}reg/layers"),  # "-" in Lightning 2.5.0
        (False, "mine/reg/layers"),
        (False, "reg/layers"),
    ]
    assert all(image.size == (wide, high) for _, _, image in calls)


def test_a_remote_folder_gets_its_files_and_this_machine_none(fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = fsspec.filesystem("memory")
    services = quiet(WandbLogger, [])
    try:
        fit(
            RegularizationMonitor(html=True),
            logger=[CSVLogger("memory://logs"), services],
            default_root_dir="memory://root",
            enable_checkpointing=False,
        )

        with files.open("memory://logs/lightning_logs/version_0/reg.png") as file, Image.open(file) as saved:
            assert saved.format == "PNG"
        for page in ("logs/lightning_logs/version_0/reg.html", "root/fake/0/reg.html"):
            assert files.cat(f"memory://{page}").startswith(b"<!doctype html>")
        assert list(tmp_path.iterdir()) == []
    finally:
        files.rm("/", recursive=True)


def test_a_page_is_saved_in_the_folder_of_every_logger_if_asked_for(fit, tmp_path):
    loggers = [TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "table"), quiet(WandbLogger, [])]

    fit(RegularizationMonitor(html=True), logger=loggers, default_root_dir=tmp_path)

    files = [tmp_path / f"{name}/lightning_logs/version_0/reg.html" for name in ("board", "table")]
    files.append(tmp_path / "fake" / "0" / "reg.html")
    assert sorted(files) == sorted(tmp_path.rglob("reg.html"))
    (page,) = {file.read_text("utf-8") for file in files}
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', page)[1])
    assert data["steps"] == list(range(14))
    for metric, written in layers(tmp_path / "board").items():
        values = np.frombuffer(base64.b64decode(data["metrics"][metric]), "<f4").reshape(-1, 14)
        for layer, row in zip(data["layers"], values, strict=True):
            assert dict(enumerate(row)) == written[layer]


def test_there_is_no_page_unless_it_is_asked_for_and_none_without_layers(fit, tmp_path):
    fit(RegularizationMonitor(), logger=TensorBoardLogger(tmp_path), default_root_dir=tmp_path)

    assert not list(tmp_path.rglob("reg.html"))
    with pytest.raises(ValueError, match=r"`html` needs the numbers of single layers.*'auto'"):
        RegularizationMonitor(html=True, per_layer=False)
