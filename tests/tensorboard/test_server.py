"""The answers of a real TensorBoard process over HTTP."""

import pytest

from lightning_reg.tensorboard import layout
from tests.event_files import scalars
from tests.tensorboard.conftest import RUNS

STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


def test_the_pages_that_we_write_for_are_active(server):
    plugins = server.get("plugins_listing")

    assert all(plugins[page]["enabled"] for page in ("scalars", "custom_scalars", "histograms", "hparams", "text"))


def test_every_scalar_is_there_with_its_values(server, logs):
    tags = server.get("plugin/scalars/tags")

    for run in RUNS:
        logged = scalars(logs / run)
        assert {tag for tag in logged if tag.startswith("reg")} <= set(tags[run])
        for tag in ("reg/sparsity_median", "reg.lipschitz/network.encoder", "reg/penalty"):
            points = server.get("plugin/scalars/scalars", run=run, tag=tag)
            assert {step: pytest.approx(value) for _, step, value in points} == logged[tag]


def test_every_histogram_is_there_and_shares_no_tag_with_a_scalar(server):
    tags, scalar_tags = server.get("plugin/histograms/tags"), server.get("plugin/scalars/tags")

    for run in RUNS:
        assert {"reg/weight_norm_over_layers", "reg/spectral_norm_over_layers", "reg.weights/network.head"} <= set(
            tags[run]
        )
        assert not set(tags[run]) & set(scalar_tags[run])
        points = server.get("plugin/histograms/histograms", run=run, tag="reg.weights/network.head")
        assert [step for _, step, _ in points] == [6, 13]


def test_every_chart_of_the_layout_finds_its_data(server):
    written = server.get("plugin/custom_scalars/layout")

    (category,) = written["category"]
    assert {category["title"]: [chart["title"] for chart in category["chart"]]} == {
        title: list(charts) for title, charts in layout().items()
    }
    for chart in category["chart"]:
        for pattern in chart.get("multiline", {}).get("tag", []):
            answers = [server.get("plugin/custom_scalars/scalars", run=run, tag=pattern) for run in RUNS]
            assert all(answer["regex_valid"] for answer in answers)
            assert any(answer["tag_to_events"] for answer in answers), pattern
        for series in chart.get("margin", {}).get("series", []):
            for run in RUNS:
                points = [server.get("plugin/scalars/scalars", run=run, tag=tag) for tag in series.values()]
                assert len(points) == 3
                assert all([step for _, step, _ in part] == list(range(14)) for part in points)


def test_the_hyperparameters_of_callbacks_stand_beside_the_users(server):
    body = {"experimentName": "", "startIndex": 0, "sliceSize": 10, "colParams": [], "allowedStatuses": STATUSES}

    groups = {group["name"]: group for group in server.post("plugin/hparams/session_groups", body)["sessionGroups"]}

    assert groups["sparse"]["hparams"] == {
        "width": 9.0,
        "name": "x",
        "target_sparsity.penalty": "L1Penalty(strength=0.0, select=None, mode='proximal', schedule=None)",
        "target_sparsity.target": 0.5,
        "target_sparsity.scope": "global",
        "target_sparsity.floor": 0.0,
        "l1.strength": 0.0,
        "l1.mode": "proximal",
        "elastic_net.alpha": 0.002,
        "elastic_net.l1_ratio": 0.25,
        "elastic_net.mode": "loss",
    }
    assert groups["small"]["hparams"] == {
        "width": 8.0,
        "name": "x",
        "l2.strength": 0.05,
        "l2.mode": "grad",
        "dropout_scheduler.schedule": "Linear(start=0.0, end=0.5, duration=0.5)",
        "dropout_scheduler.scale": 0,
        "dropout_scheduler.interval": "step",
    }
    for group in groups.values():
        last = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert last["val/accuracy"] == pytest.approx(0.6)
        assert last["reg/weight_norm"] > 0


def test_the_columns_include_all_runs(server):
    experiment = server.post("plugin/hparams/experiment", {"experimentName": ""})

    assert {"width", "target_sparsity.target", "l2.strength"} <= {info["name"] for info in experiment["hparamInfos"]}
    assert {"val/accuracy", "reg/sparsity"} <= {info["name"]["tag"] for info in experiment["metricInfos"]}
