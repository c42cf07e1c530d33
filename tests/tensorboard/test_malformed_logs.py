"""Logs that other programs, or bad days, have left: what is broken in one run leaves the others alone."""

import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto
from werkzeug.test import Client

from lightning_reg.tensorboard import events, tags
from lightning_reg.tensorboard.plugin.routes import RegularizationPlugin
from lightning_reg.tensorboard.plugin.series import natural

NAMES = ["fc1", "fc2"]


def write(folder, run, step, *values):
    writer = EventFileWriter(str(folder / run), filename_suffix=f".{step}")
    writer.add_event(Event(step=step, wall_time=1.0 + step, summary=Summary(value=values)))
    writer.close()


def scalar_of_two(tag):
    kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"), data_class=DATA_CLASS_SCALAR)
    return Summary.Value(tag=tag, metadata=kind, tensor=make_tensor_proto(np.ones(2, np.float32)))


def tensor(tag, content, values):
    plugin = SummaryMetadata.PluginData(plugin_name=tags.PAGE, content=content)
    metadata = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    return Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(values))


@pytest.fixture
def ask(tmp_path):
    write(tmp_path, "good", 0, Summary.Value(tag="reg.weight_norm/fc", simple_value=1.5))

    def ask(route, **query):
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
        multiplexer.Reload()
        context = TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path)))
        answer = Client(RegularizationPlugin(context).get_plugin_apps()[route]).get("/", query_string=query)
        assert answer.status_code == 200, answer.text
        return answer.json

    return ask


def described(ask):
    return {run["name"]: run for run in ask("/runs")["runs"]}


def test_a_malformed_scalar_costs_its_run_only_that_series(ask, tmp_path):
    good = [Summary.Value(tag=f"reg.weight_norm/fc{index}", simple_value=index) for index in range(5)]
    write(tmp_path, "odd", 0, scalar_of_two("loss"), scalar_of_two("reg.weight_norm/bad"), *good)

    runs = described(ask)

    assert list(runs) == ["good", "odd"]
    assert runs["good"]["problems"] == []
    assert {problem.split(":")[0] for problem in runs["odd"]["problems"]} == {"loss", "reg.weight_norm/bad"}
    heatmap = ask("/heatmap", run="odd", metric="weight_norm")
    assert dict(zip(heatmap["layers"], heatmap["values"], strict=True)) == {f"fc{index}": [index] for index in range(5)}
    assert ask("/curve", metric="weight_norm", layer="fc")["curves"] == [{"run": "good", "steps": [0], "values": [1.5]}]


@pytest.mark.parametrize("order", [np.ones(3, np.float32), np.array([[b"fc2"], [b"fc1"]]), np.array([b"\xff", b"fc2"])])
def test_a_malformed_order_of_layers_loses_no_numbers(ask, tmp_path, order):
    write(tmp_path, "odd", 0, tensor("reg.layers", b"", order))
    write(tmp_path, "odd", 1, *events.layer_values(tags.values_of("weight_norm", NAMES), [1.0, 2.0], NAMES).value)

    assert list(described(ask)) == ["good", "odd"]
    heatmap = ask("/heatmap", run="odd", metric="weight_norm")
    assert dict(zip(heatmap["layers"], heatmap["values"], strict=True)) == {"fc1": [1.0], "fc2": [2.0]}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"[1, 2]", b'"fc"'])
def test_numbers_without_names_are_reported_and_left_out(ask, tmp_path, content):
    write(tmp_path, "odd", 0, tensor("reg.layers.01234567/sparsity", content, np.ones(2, np.float32)))
    write(tmp_path, "odd", 1, Summary.Value(tag="reg.weight_norm/fc", simple_value=2.5))

    runs = described(ask)

    assert runs["odd"]["metrics"] == ["weight_norm"]
    assert runs["odd"]["problems"][0].startswith("reg.layers.01234567/sparsity: ")


def test_a_step_with_too_few_numbers_is_left_out_with_a_reason(ask, tmp_path):
    tag = tags.values_of("weight_norm", NAMES)
    for step, values in enumerate([[1.0, 2.0], [3.0], [5.0, np.nan]]):
        write(tmp_path, "odd", step, *events.layer_values(tag, values, NAMES).value)

    heatmap = ask("/heatmap", run="odd", metric="weight_norm")

    assert (heatmap["steps"], heatmap["values"]) == ([0, 2], [[1.0, 5.0], [2.0, "NaN"]])
    assert heatmap["problems"] == [f"{tag}: not 2 numbers at step 1"]


def test_another_set_of_layers_in_mid_run_keeps_every_number_at_its_layer(ask, tmp_path):
    for step, names, values in [(0, ["a", "b"], [1.0, 2.0]), (1, ["b", "c"], [20.0, 30.0])]:
        summary = events.layer_values(tags.values_of("weight_norm", names), values, names)
        write(tmp_path, "thawed", step, *summary.value)

    heatmap = ask("/heatmap", run="thawed", metric="weight_norm")

    assert (heatmap["layers"], heatmap["steps"]) == (["a", "b", "c"], [0, 1])
    assert heatmap["values"] == [[1.0, None], [2.0, 20.0], [None, 30.0]]


@pytest.mark.parametrize("tag", ["-reg.a{}", "-reg.a{} /x", "-reg.a/{}", "-reg.layers.01234567/{}"])
def test_tags_are_matched_in_time_proportional_to_their_length(tag):
    start, end = tag.split("{}")
    text = start * 40_000 + end
    begun = time.perf_counter()
    for pattern in (tags.PER_LAYER, tags.OVERALL, tags.VALUES):
        pattern.fullmatch(text)

    assert time.perf_counter() - begun < 2  # quadratic, it would be minutes


def test_runs_are_in_the_order_of_the_numbers_in_their_names():
    strengths = ["0", "1e-5", "5e-05", "0.0001", "0.001", "0.01", "0.5", "2", "10"]
    names = [f"l2={strength}_seed={seed}" for strength in strengths for seed in (0, 1)] + [f"l2=1{'0' * 5000}"]

    assert sorted(sorted(names), key=lambda name: (natural(name), name)) == names
