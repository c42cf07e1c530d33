"""The routes of the page "Regularization", as a real TensorBoard process answers them over HTTP."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lightning_reg.tensorboard import events
from tests.event_files import layers, scalars
from tests.tensorboard.big_logs import write_run, write_scalars
from tests.tensorboard.conftest import RUNS, Server

PLUGIN = "plugin/lightning_reg_page"
LAYERS = ["network.encoder", "network.conv", "network.head"]
HOSTILE = ['<img src=x onerror="alert(1)">', "a/b/../../c", "line\nbreak", "layer10", "layer2", "café ∂", "1" * 5000]
TAGS = 10_000


def write_odd_logs(folder: Path) -> None:
    """Write runs that no monitor of today writes, but that TensorBoard may meet."""
    steps = np.arange(5)
    flat = np.ones(5)
    write_run(folder / "old", 0, ["fc1", "fc10", "fc2"], 1000, ("weight_norm", "spectral_norm"))
    write_scalars(
        folder / "prefixed" / "events.out.tfevents.1.a",
        steps * 10,
        {"p-reg.weight_norm/fc1": flat * 2, "p-reg/sparsity": flat / 4, "p-q-reg.weight_norm/fc1": flat * 3},
    )
    odd = np.array([1.0, np.nan, np.inf, -np.inf, 2.0])
    write_scalars(folder / "numbers" / "events.out.tfevents.1.a", steps, {"reg.weight_norm/fc1": odd})
    # At other steps, where the first layer has nothing.
    write_scalars(folder / "numbers" / "events.out.tfevents.2.b", steps + 3, {"reg.weight_norm/fc2": flat})
    names = {f"reg.weight_norm/{name}": flat for name in HOSTILE}
    write_scalars(folder / "hostile" / "events.out.tfevents.1.a", steps, names)
    write_scalars(
        folder / "lipschitz" / "events.out.tfevents.1.a",
        steps,
        {"reg/lipschitz_log10": steps * 100.0, "reg/dropout": flat / 2, "reg/penalty_ratio": odd[:2].repeat(3)[:5]},
    )
    write_scalars(folder / "others" / "events.out.tfevents.1.a", steps, {"loss": flat, "reg_x/y": flat, "reg/z": flat})
    whole = folder / "broken" / "events.out.tfevents.1.a"
    write_run(whole.parent, 1, ["fc1"], 50, ("weight_norm",))
    (written,) = whole.parent.iterdir()
    written.write_bytes(written.read_bytes()[:-30])
    (folder / "empty").mkdir()
    (folder / "empty" / "events.out.tfevents.1.a").write_bytes(b"no event file")


@pytest.fixture(scope="module")
def odd_logs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    write_odd_logs(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[["--path_prefix=/behind/a/proxy"], ["--load_fast=false"]],
    ids=["default loader behind a prefix", "Python loader"],
)
def odd_server(request, odd_logs) -> Iterator[Server]:
    server = Server(odd_logs, *request.param)
    try:
        wait_for(server, {"old": 999, "prefixed": 40, "numbers": 7, "hostile": 4, "lipschitz": 4, "broken": 48})
        yield server
    finally:
        server.close()


def wait_for(server: Server, last_steps) -> None:
    """Wait until each run has been loaded up to its last step."""

    def loaded() -> bool:
        versions = {run["name"]: run["version"] for run in server.get(f"{PLUGIN}/runs")["runs"]}
        return all(versions.get(run, "").endswith(f"-{step}") for run, step in last_steps.items())

    server.until(loaded)


def refusal(server: Server, route: str, method: str = "GET") -> tuple[int, str]:
    """Return status and reason of an answer that is an error."""
    with pytest.raises(HTTPError) as raised, urlopen(Request(f"{server.url}/data/{route}", method=method)):
        pass
    with raised.value as answer:
        return answer.code, json.load(answer)["error"]


def test_the_tab_is_there_and_its_page_is_a_module(server):
    listed = server.get("plugins_listing")["lightning_reg_page"]

    assert listed["enabled"]
    assert listed["tab_name"] == "Regularization"
    path = f"/data/{PLUGIN}/static/index.js"
    assert listed["loading_mechanism"] == {"type": "IFRAME", "module_path": path}
    with urlopen(server.url + path) as answer:
        assert answer.headers["Content-Type"].startswith("text/javascript")
        assert "export async function render" in answer.read().decode()


def test_every_file_of_the_page_has_its_type_and_is_asked_for_anew(odd_server):
    static = files("lightning_reg.tensorboard.plugin") / "static"
    kinds = {".css": "text/css", ".js": "text/javascript"}
    for file in (file for file in static.rglob("*") if file.is_file()):
        path = file.relative_to(static).as_posix()
        with urlopen(f"{odd_server.url}/data/{PLUGIN}/static/{path}") as answer:
            assert answer.headers.get_content_type() == kinds[file.suffix], path
            # A page of mixed versions, after an update, would not start.
            assert answer.headers["Cache-Control"] == "no-cache, must-revalidate", path
            assert answer.read() == file.read_bytes(), path


def test_the_runs_are_listed_with_their_metrics_and_last_numbers(server, logs):
    runs = server.get(f"{PLUGIN}/runs")["runs"]

    assert [run["name"] for run in runs] == ["small", "sparse"]
    for run in runs:
        logged = scalars(logs / run["name"])
        assert run["metrics"] == ["lipschitz", "sparsity", "spectral_norm", "weight_norm"]
        for key, value in run["summary"].items():
            assert value == (logged[f"reg/{key}"][13] if f"reg/{key}" in logged else None), key
        assert run["summary"]["sparsity"] is not None
    assert runs[0]["summary"]["dropout"] == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["weight_norm", "sparsity", "spectral_norm"])
def test_a_heatmap_has_every_number_as_logged_and_its_rows_in_the_order_of_the_network(server, logs, metric):
    for run in RUNS:
        logged = layers(logs / run)[metric]
        heatmap = server.get(f"{PLUGIN}/heatmap", run=run, metric=metric)

        assert heatmap == {
            "run": run,
            "metric": metric,
            "layers": LAYERS,
            "order": "network",
            "steps": list(range(14)),
            "values": [list(logged[layer].values()) for layer in LAYERS],
            "total_steps": 14,
        }


def test_a_curve_has_every_logged_number_of_all_runs(server, logs):
    answer = server.get(f"{PLUGIN}/curve", metric="weight_norm", layer="network.head")

    assert (answer["metric"], answer["layer"]) == ("weight_norm", "network.head")
    assert [curve["run"] for curve in answer["curves"]] == ["small", "sparse"]
    for curve in answer["curves"]:
        logged = layers(logs / curve["run"])["weight_norm"]["network.head"]
        assert dict(zip(curve["steps"], curve["values"], strict=True)) == logged


def test_only_runs_with_something_to_show_are_listed_in_natural_order(odd_server):
    runs = {run["name"]: run for run in odd_server.get(f"{PLUGIN}/runs")["runs"]}

    assert list(runs) == ["broken", "hostile", "lipschitz", "numbers", "old", "prefixed"]
    assert runs["lipschitz"]["metrics"] == []
    assert runs["lipschitz"]["summary"] == {
        "sparsity": None,
        "lipschitz_upper": "Infinity",
        "penalty_ratio": "NaN",
        "dropout": 0.5,
    }
    assert runs["prefixed"]["summary"]["sparsity"] == 0.25


def test_logs_without_the_order_of_layers_are_shown_by_name(odd_server, odd_logs):
    heatmap = odd_server.get(f"{PLUGIN}/heatmap", run="old", metric="spectral_norm", columns="2000")

    assert heatmap["order"] == "name"
    assert heatmap["layers"] == ["fc1", "fc2", "fc10"]
    logged = scalars(odd_logs / "old")
    assert heatmap["steps"] == list(range(1000))
    assert heatmap["values"] == [list(logged[f"reg.spectral_norm/{name}"].values()) for name in ("fc1", "fc2", "fc10")]


def test_many_steps_become_few_columns_and_the_last_is_the_newest(odd_server, odd_logs):
    logged = scalars(odd_logs / "old")
    for columns, steps in ((4, [249, 499, 749, 999]), (3, [332, 665, 999]), (1, [999])):
        heatmap = odd_server.get(f"{PLUGIN}/heatmap", run="old", metric="weight_norm", columns=str(columns))

        assert heatmap["total_steps"] == 1000
        assert heatmap["steps"] == steps
        assert heatmap["values"][1] == [logged["reg.weight_norm/fc2"][step] for step in steps]
        curves = odd_server.get(f"{PLUGIN}/curve", metric="weight_norm", layer="fc2", points=str(columns))["curves"]
        assert {"run": "old", "steps": steps, "values": heatmap["values"][1]} in curves
    assert len(odd_server.get(f"{PLUGIN}/heatmap", run="old", metric="weight_norm")["steps"]) == 400


def test_the_prefix_of_a_logger_belongs_neither_to_metric_nor_to_layer(odd_server):
    (run,) = (run for run in odd_server.get(f"{PLUGIN}/runs")["runs"] if run["name"] == "prefixed")
    heatmap = odd_server.get(f"{PLUGIN}/heatmap", run="prefixed", metric="weight_norm")

    assert run["metrics"] == ["weight_norm"]
    # Two loggers in one folder: the second prefix tells their layers apart.
    assert heatmap["layers"] == ["fc1", "p-q-fc1"]
    assert heatmap["values"] == [[2.0] * 5, [3.0] * 5]
    assert heatmap["steps"] == [0, 10, 20, 30, 40]
    curves = odd_server.get(f"{PLUGIN}/curve", metric="weight_norm", layer="fc1")["curves"]
    assert [curve["run"] for curve in curves] == ["broken", "numbers", "old", "prefixed"]


def test_numbers_that_json_lacks_have_names_and_steps_without_a_number_are_blank(odd_server):
    heatmap = odd_server.get(f"{PLUGIN}/heatmap", run="numbers", metric="weight_norm")

    assert heatmap["steps"] == list(range(8))
    assert heatmap["values"] == [
        [1.0, "NaN", "Infinity", "-Infinity", 2.0, None, None, None],
        [None, None, None, 1.0, 1.0, 1.0, 1.0, 1.0],
    ]
    # Of the steps in a column, the last number of each layer.
    few = odd_server.get(f"{PLUGIN}/heatmap", run="numbers", metric="weight_norm", columns="2")
    assert (few["steps"], few["values"]) == ([3, 7], [["-Infinity", 2.0], [1.0, 1.0]])


def test_layers_may_have_any_name(odd_server):
    heatmap = odd_server.get(f"{PLUGIN}/heatmap", run="hostile", metric="weight_norm")

    assert sorted(heatmap["layers"]) == sorted(HOSTILE)
    assert heatmap["layers"].index("layer2") < heatmap["layers"].index("layer10")
    for name in HOSTILE:
        (curve,) = odd_server.get(f"{PLUGIN}/curve", metric="weight_norm", layer=name)["curves"]
        assert curve == {"run": "hostile", "steps": [0, 1, 2, 3, 4], "values": [1.0] * 5}


def test_a_half_written_event_file_shows_its_complete_events(odd_server):
    heatmap = odd_server.get(f"{PLUGIN}/heatmap", run="broken", metric="weight_norm")

    assert heatmap["steps"] == list(range(49))


REFUSED = [
    ("heatmap", 400, "`run` must be given"),
    ("heatmap?run=old", 400, "`metric` must be given"),
    ("heatmap?run=&metric=weight_norm", 400, "`run` must be given"),
    ("heatmap?run=nope&metric=weight_norm", 404, "no run 'nope'"),
    ("heatmap?run=others&metric=weight_norm", 404, "no run 'others'"),
    ("heatmap?run=..%2Fold&metric=weight_norm", 404, "no run '../old'"),
    (f"heatmap?run={'x' * 20_000}&metric=weight_norm", 404, f"no run '{'x' * 100}...'"),
    ("heatmap?run=old&metric=nope", 404, "no metric 'nope' in run 'old'"),
    ("heatmap?run=lipschitz&metric=weight_norm", 404, "no metric 'weight_norm' in run 'lipschitz'"),
    *(
        (f"heatmap?run=old&metric=weight_norm&columns={value}", 400, "`columns` must be an integer from 1 to 2000, got")
        for value in ("0", "-1", "2001", "1e3", "", "x", "9" * 10_000, quote("٣"))
    ),
    ("curve", 400, "`metric` must be given"),
    ("curve?metric=weight_norm", 400, "`layer` must be given"),
    ("curve?metric=nope&layer=fc1", 404, "no metric 'nope' in any run"),
    ("curve?metric=weight_norm&layer=nope", 404, "no layer 'nope' with metric 'weight_norm' in any run"),
    ("curve?metric=weight_norm&layer=fc1&points=2001", 400, "`points` must be an integer from 1 to 2000, got '2001'"),
    *(
        (f"static/{path}", 404, "no file")
        for path in (
            "nope.js",
            "../loader.py",
            "..%2Floader.py",
            "..%5Cloader.py",
            "%2Fetc%2Fpasswd",
            "/etc/passwd",
            "%2E%2E/routes.py",
            "server/../../routes.py",
            "server%2F..%2F..%2Froutes.py",
            "server/../index.js",
            "server%2F%2E%2E%2Findex.js",
            "./index.js",
            "server/./api.js",
            "server//api.js",
            "/index.js",
            "api.js",
            "server",
            "server/",
            "server/nope.js",
            "server%5Capi.js",
            "server%252Fapi.js",
            "__pycache__",
            "index.js%00.css",
            "index.js/",
            ".",
            "x" * 10_000,
        )
    ),
]


@pytest.mark.parametrize(("route", "status", "reason"), REFUSED, ids=[route[:60] for route, *_ in REFUSED])
def test_missing_items_are_refused_with_a_reason(odd_server, route, status, reason):
    code, told = refusal(odd_server, f"{PLUGIN}/{route}")

    assert code == status
    assert reason in told
    assert len(told) < 300


@pytest.mark.parametrize("route", ["runs", "heatmap", "curve", "static/index.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_reading_is_allowed(odd_server, route, method):
    assert refusal(odd_server, f"{PLUGIN}/{route}", method) == (405, f"{method} is not allowed, only GET")


@pytest.mark.parametrize("arguments", [[], ["--load_fast=false"]], ids=["default loader", "Python loader"])
def test_ten_thousand_layers_are_shown(tmp_path, arguments):
    names = [f"layer{index}" for index in range(TAGS)]
    writer = EventFileWriter(str(tmp_path / "run"))
    for step in range(3):
        summary = events.scalars({f"reg.weight_norm/{name}": index for index, name in enumerate(names)})
        writer.add_event(Event(step=step, wall_time=step, summary=summary))
    writer.close()
    server = Server(tmp_path, *arguments)
    try:
        wait_for(server, {"run": 2})
        assert server.get("plugins_listing")["lightning_reg_page"]["enabled"]
        heatmap = server.get(f"{PLUGIN}/heatmap", run="run", metric="weight_norm")
    finally:
        server.close()

    assert heatmap["layers"] == names
    assert heatmap["values"] == [[float(index)] * 3 for index in range(TAGS)]


def test_without_logs_of_ours_the_tab_stays_inactive(tmp_path):
    write_scalars(tmp_path / "run" / "events.out.tfevents.1.a", np.arange(3), {"loss": np.ones(3)})
    server = Server(tmp_path)
    try:
        server.until(lambda: "run" in server.get("plugin/scalars/tags"))
        assert server.get("plugins_listing")["lightning_reg_page"]["enabled"] is False
        assert server.get(f"{PLUGIN}/runs") == {"runs": []}
    finally:
        server.close()
