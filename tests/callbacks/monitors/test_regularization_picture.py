"""The picture that loggers without TensorBoard's page get."""

import base64
import json
import re

import numpy as np
import pytest
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lightning_reg import RegularizationMonitor
from tests.event_files import layers


def quiet(kind, calls):
    """Return a logger of Lightning's that has no service behind it."""

    class Experiment:
        def log_image(self, *args, **kwargs):
            calls.append((kind.__name__, [each for each in (*args, *kwargs.values()) if isinstance(each, Image.Image)]))

    class Fake(kind):
        name, version, run_id, experiment, save_dir = "fake", "0", "7", Experiment(), None

        def __init__(self):
            self._prefix = ""

        def log_image(self, key, images, step=None):
            calls.append((kind.__name__, images))

    for name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"):
        setattr(Fake, name, lambda *args, **kwargs: None)
    return Fake()


def test_the_folder_of_a_csv_logger_and_loggers_of_pictures_get_one_at_the_end(fit, tmp_path):
    calls = []
    services = [quiet(kind, calls) for kind in (WandbLogger, MLFlowLogger, CometLogger)]

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
    assert [name for name, _ in calls] == ["WandbLogger", "MLFlowLogger", "CometLogger"]
    assert all(len(images) == 1 and images[0].size == (wide, high) for _, images in calls)


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
