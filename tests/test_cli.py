"""What LightningCLI makes of YAML: schedules, selections, a run."""

import math

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lightning_reg import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Piecewise,
    Select,
    Sequence,
    curriculum_dropout,
    early_dropout,
    late_dropout,
)
from tests.models import Regressor, loader, weights_of
from tests.reference import PENALTIES, assert_same_weights, both_modes, train_by_hand


@pytest.fixture
def l1_penalty_from_yaml(callback_from_yaml):
    """Return a function that gives one argument of an L1 penalty in YAML, and reads it back."""

    def read(argument, value):
        text = f"class_path: lightning_reg.L1Penalty\ninit_args:\n  strength: 1e-4\n  {argument}: {value}"
        return getattr(callback_from_yaml(text), argument)

    return read


SCHEDULES_IN_YAML = {
    "a share": ("{class_path: lightning_reg.Linear, init_args: {start: 0, end: 1, duration: 1e-1}}", Linear(0, 1, 0.1)),
    "a tick": ("{class_path: lightning_reg.Linear, init_args: {start: 0, end: 1, duration: 1}}", Linear(0, 1, 1)),
    "the run": ("{class_path: lightning_reg.Linear, init_args: {start: 0, end: 1, duration: 1.0}}", Linear(0, 1, 1.0)),
    "no package": ("{class_path: Cosine, init_args: {start: 0, end: 1, duration: 5}}", Cosine(0, 1, 5)),
    "nothing but a name": ("lightning_reg.Constant", Constant()),
    "a function": ("math.sqrt", math.sqrt),
    "lists": (
        "{class_path: lightning_reg.Piecewise, init_args: {values: [0, 1, 2], durations: [1, 1.0]}}",
        Piecewise((0, 1, 2), (1, 1.0)),
    ),
    "a recipe": ("{class_path: lightning_reg.late_dropout, init_args: {rate: 0.3, duration: 7}}", late_dropout(0.3, 7)),
    "a recipe's defaults": (
        "{class_path: lightning_reg.curriculum_dropout, init_args: {rate: 0.3}}",
        curriculum_dropout(0.3),
    ),
    "schedules in schedules": (
        """
      class_path: lightning_reg.Sequence
      init_args:
        schedules:
        - class_path: lightning_reg.early_dropout
          init_args: {rate: 0.3, duration: 5}
        - class_path: lightning_reg.Sequence
          init_args:
            schedules:
            - lightning_reg.Constant
            - class_path: lightning_reg.Exponential
              init_args: {start: 1.0, end: 1e-3, duration: 0.5}
            durations: [4]
        durations: [0.25]""",
        Sequence((early_dropout(0.3, 5), Sequence((Constant(), Exponential(1.0, 1e-3, 0.5)), (4,))), (0.25,)),
    ),
    "none": ("null", None),
}


@pytest.mark.parametrize(("text", "expected"), SCHEDULES_IN_YAML.values(), ids=list(SCHEDULES_IN_YAML))
def test_a_schedule_comes_from_yaml(l1_penalty_from_yaml, text, expected):
    assert l1_penalty_from_yaml("schedule", text) == expected


def test_1_is_a_tick_in_yaml_and_1_point_0_the_whole_run(l1_penalty_from_yaml):
    tick, run = (l1_penalty_from_yaml("schedule", SCHEDULES_IN_YAML[name][0]) for name in ("a tick", "the run"))

    assert [tick.resolve(10)(1), run.resolve(10)(1)] == [1.0, 0.1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null", None),
        ("encoder.*", "encoder.*"),
        ("['encoder.*', head.weight]", ["encoder.*", "head.weight"]),
        ("{exclude: head.*}", Select(exclude="head.*")),
        ("{class_path: lightning_reg.Select, init_args: {include: [a.*, b.*]}}", Select(include=["a.*", "b.*"])),
        (
            "{module_types: [torch.nn.Linear, torch.nn.Conv2d], min_ndim: 1}",
            Select(module_types=[torch.nn.Linear, torch.nn.Conv2d], min_ndim=1),
        ),
    ],
)
def test_a_selection_comes_from_yaml(l1_penalty_from_yaml, text, expected):
    assert l1_penalty_from_yaml("select", text) == expected


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (
            "schedule",
            "{class_path: lightning_reg.early_dropout, init_args: {rate: 1.1}}",
            r"`rate` must be in \[0, 1\)",
        ),
        ("schedule", "{class_path: Linear, init_args: {start: 0, end: 1, duration: 1.5}}", "`duration` must be an int"),
        ("select", "{min_ndim: -1}", "`min_ndim` must be an int >= 0, got -1"),
        ("strength", "-1", "`strength` must be a finite number >= 0, got -1"),
    ],
)
def test_a_mistake_in_yaml_shows_the_rule(l1_penalty_from_yaml, argument, value, message):
    with pytest.raises(ValueError, match=message):
        l1_penalty_from_yaml(argument, value)


class WithData(Regressor):
    def __init__(self):
        super().__init__()

    def train_dataloader(self):
        return loader()


@both_modes
def test_a_run_from_yaml_trains_with_penalty_and_schedule(tmp_path, mode):
    config = tmp_path / "config.yaml"
    config.write_text(f"""
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  callbacks:
  - class_path: lightning_reg.ElasticNetPenalty
    init_args:
      alpha: 0.05
      l1_ratio: 0.3
      mode: {mode}
      select: {{exclude: "*.bias"}}
      schedule:
        class_path: lightning_reg.Linear
        init_args: {{start: 0, end: 1, duration: 1.0}}
""")

    cli = LightningCLI(
        WithData, seed_everything_default=False, save_config_callback=None, args=["fit", "--config", str(config)]
    )

    term = PENALTIES["elastic_net"][1]
    by_hand = train_by_hand(Regressor(), loader(), term, factor=lambda step: step / 14)
    assert_same_weights(weights_of(cli.model), weights_of(by_hand))


def test_a_monitor_with_metrics_comes_from_yaml(callback_from_yaml):
    monitor = callback_from_yaml("""
class_path: lightning_reg.RegularizationMonitor
init_args:
  metrics:
    units:
      class_path: lightning_reg.metrics.Sparsity
      init_args: {threshold: 1e-3, dim: 0}
    norm: lightning_reg.metrics.WeightNorm
  per_layer: ["encoder.*"]
""")

    assert list(monitor.metrics) == ["units", "norm"]
    assert (monitor.metrics["units"].threshold, monitor.metrics["units"].dim) == (1e-3, 0)
    assert monitor.per_layer == ["encoder.*"]
