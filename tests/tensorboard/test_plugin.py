"""The plugin of TensorBoard without a TensorBoard process: what it imports, when it fails, what order layers have."""

import json
import subprocess
import sys
import time

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard import errors
from tensorboard.data.provider import ScalarDatum
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.util import tensor_util
from torch import nn
from werkzeug.test import Client

from lightning_reg import RegularizationMonitor
from lightning_reg.metrics import WeightNorm
from lightning_reg.tensorboard.plugin import routes
from lightning_reg.tensorboard.plugin.loader import RegularizationLoader
from lightning_reg.tensorboard.plugin.routes import RegularizationPlugin
from tests.event_files import values_in
from tests.models import Regressor
from tests.tensorboard.conftest import Server


class Provider:
    """Stands in for TensorBoard's data provider: one experiment, one run, one layer."""

    def __init__(self, failures=()) -> None:
        self.failures = list(failures)

    def _check(self, experiment_id):
        if self.failures:
            raise self.failures.pop()
        if experiment_id not in ("", "known"):
            raise errors.NotFoundError(f"no experiment {experiment_id!r}")

    def read_last_scalars(self, ctx, *, experiment_id, plugin_name, run_tag_filter):
        self._check(experiment_id)
        return {"run": {"reg.weight_norm/fc": ScalarDatum(step=3, wall_time=5.0, value=1.5)}}


def client(provider, route: str) -> Client:
    return Client(RegularizationPlugin(TBContext(data_provider=provider)).get_plugin_apps()[route])


@pytest.mark.parametrize("module", ["loader", "routes"])
def test_tensorboard_waits_for_neither_torch_nor_lightning(module):
    code = f"import sys, lightning_reg.tensorboard.plugin.{module}; print({{'torch', 'lightning'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout == "set()\n"


@pytest.mark.parametrize("module", ["routes", "logs"])
def test_a_plugin_that_cannot_be_imported_is_one_line_and_tensorboard_starts(tmp_path, module):
    broken = f"import sys; sys.modules['lightning_reg.tensorboard.plugin.{module}'] = None"
    (tmp_path / "sitecustomize.py").write_text(broken)
    server = Server(tmp_path, environment={"PYTHONPATH": str(tmp_path)})
    try:
        listed = server.get("plugins_listing")
    finally:
        server.close()

    assert "scalars" in listed
    assert "lightning_reg_page" not in listed
    (line,) = (line for line in server.lines if "Regularization" in line)
    assert "ModuleNotFoundError" in line
    assert not [line for line in server.lines if "Traceback" in line]


def test_without_a_data_provider_a_line_says_that_there_is_no_plugin(caplog):
    assert RegularizationLoader().load(TBContext()) is None

    (record,) = caplog.records
    assert "no data provider" in record.message
    assert "\n" not in record.message


def test_the_files_of_the_page_are_in_its_folder_when_tensorboard_starts_and_not_hidden(monkeypatch, tmp_path):
    served = {"index.js": "text/javascript", "inner/deep/x.js": "text/javascript", "inner/x.css": "text/css"}
    others = [".x.js", ".git/x.js", "inner/.x.js", "inner/.hidden/x.js", "x.py", "js", "inner/x", "folder.js/x.py"]
    for path in [*served, *others, "../x.js", "../static2/x.js"]:
        file = tmp_path / "static" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    monkeypatch.setattr(routes, "files", lambda package: tmp_path)
    ask = client(Provider(), "/static/*")
    (tmp_path / "static" / "inner" / "later.js").write_text("later")

    for path, kind in served.items():
        answer = ask.get(f"/static/{path}")
        assert (answer.status_code, answer.mimetype, answer.text) == (200, kind, path)
    outside = [
        "../x.js",
        "inner/../../x.js",
        "../static2/x.js",
        "2/x.js",
        f"{tmp_path}/x.js",
        f"{tmp_path}/static/index.js",
    ]
    for path in [*others, *outside, "inner/later.js", "folder.js", "inner/", "inner", ""]:
        assert ask.get(f"/static/{path}").status_code == 404, path


def test_an_experiment_that_the_storage_does_not_know_is_refused_with_its_reason():
    found = client(Provider(), "/runs").get("/", environ_overrides={"HTTP_TENSORBOARD_EXPERIMENT_ID": "known"})
    assert [run["name"] for run in found.json["runs"]] == ["run"]

    for route, query in (
        ("/runs", {}),
        ("/heatmap", {"run": "run", "metric": "weight_norm"}),
        ("/curve", {"metric": "weight_norm", "layer": "fc"}),
    ):
        refused = client(Provider(), route).get(
            "/", query_string=query, environ_overrides={"HTTP_TENSORBOARD_EXPERIMENT_ID": "nope"}
        )
        assert (refused.status_code, refused.json) == (404, {"error": "Not found: no experiment 'nope'"})


def test_a_loader_that_fails_while_it_loads_is_asked_again(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    failures = [KeyError("tag"), RuntimeError("dictionary changed size during iteration")]

    assert client(Provider(failures), "/runs").get("/").json["runs"][0]["name"] == "run"
    always = client(Provider(failures * 10), "/runs").get("/")
    assert (always.status_code, json.loads(always.data)) == (503, {"error": "TensorBoard is still loading, try again"})


def orders(folder) -> dict[str, list[list[str]]]:
    """Return what is written about the order of layers: tag -> one list for each time."""
    found: dict[str, list[list[str]]] = {}
    for step, value in values_in(folder):
        if value.metadata.plugin_data.plugin_name == "lightning_reg_page" and value.tag.endswith("reg.layers"):
            assert step == 0
            names = [name.decode() for name in tensor_util.make_ndarray(value.tensor).tolist()]
            found.setdefault(value.tag, []).append(names)
    return found


class Deep(Regressor):
    """Registers its modules in another order than their names."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.add_module("z", nn.Linear(5, 6))
        self.network.add_module("drop", nn.Dropout(0.1))
        self.network.add_module("a", nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)))


def test_the_monitor_writes_all_layers_in_the_order_of_the_network(fit, tmp_path):
    fit(
        RegularizationMonitor(select="network.a.*"),
        RegularizationMonitor(select="network.z.*", metrics={"z_norm": WeightNorm()}),
        module=Deep(),
        logger=TensorBoardLogger(tmp_path, prefix="p"),
    )

    ((tag, written),) = orders(tmp_path).items()
    assert tag == "p-reg.layers"
    # The same for both monitors: TensorBoard's default loader keeps the last one only.
    assert len(written) == 2
    assert written[0] == written[1]
    shown = [name for name in written[0] if name in ("network.z", "network.drop", "network.a", "network.z.bias")]
    assert shown == ["network.z", "network.z.bias", "network.drop", "network.a"]
