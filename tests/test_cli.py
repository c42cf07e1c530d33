"""LightningCLI builds from YAML: schedules, selections, every callback, mistakes, a run."""

import inspect
import json
import math
import re
import textwrap

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI

import lightning_reg
from lightning_reg import (
    Constant,
    Cosine,
    Exponential,
    L1Penalty,
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
from tests.test_all_callbacks import CALLBACKS, plain


@pytest.fixture
def l1_penalty_from_yaml(callback_from_yaml):
    """Return a function that gives one argument of an L1 penalty in YAML, and reads it back."""

    def read(argument, value):
        text = f"class_path: lightning_reg.L1Penalty\ninit_args:\n  strength: 1e-4\n  {argument}: {value}"
        return getattr(callback_from_yaml(text), argument)

    return read


SCHEDULES_IN_YAML = {
    "a share": (
        "{class_path: lightning_reg.Linear, init_args: {start: 0, end: 1, duration: 1e-1}}",
        Linear(0.0, 1.0, 0.1),
    ),
    "a tick": ("{class_path: lightning_reg.Linear, init_args: {start: 0, end: 1, duration: 1}}", Linear(0.0, 1.0, 1)),
    "the run": (
        "{class_path: lightning_reg.Linear, init_args: {start: 0, end: 1, duration: 1.0}}",
        Linear(0.0, 1.0, 1.0),
    ),
    "no package": ("{class_path: Cosine, init_args: {start: 0, end: 1, duration: 5}}", Cosine(0.0, 1.0, 5)),
    "nothing but a name": ("lightning_reg.Constant", Constant()),
    "a function": ("math.sqrt", math.sqrt),
    "lists": (
        "{class_path: lightning_reg.Piecewise, init_args: {values: [0, 1, 2], durations: [1, 1.0]}}",
        Piecewise((0.0, 1.0, 2.0), (1, 1.0)),
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


@pytest.mark.twin
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


# Objects in objects: what `CALLBACKS` does not have.
NESTED = """
- class_path: lightning_reg.TargetSparsity
  init_args:
    penalty:
      class_path: lightning_reg.GroupLassoPenalty
      init_args:
        strength: 0.0
        dim: 1
        mode: proximal
        select:
          class_path: lightning_reg.Select
          init_args: {exclude: [head.*], module_types: [torch.nn.Linear]}
    target: 0.75
    schedule:
      class_path: lightning_reg.Sequence
      init_args:
        schedules:
        - class_path: lightning_reg.Piecewise
          init_args: {values: [0.0, 0.5], durations: [10]}
        - lightning_reg.Constant
        durations: [0.5]
- class_path: lightning_reg.RegularizationMonitor
  init_args:
    metrics:
      units:
        class_path: lightning_reg.metrics.Sparsity
        init_args: {threshold: 1e-3, dim: 0}
      norm: lightning_reg.metrics.WeightNorm
      sigma:
        class_path: lightning_reg.metrics.SpectralNorm
        init_args: {iterations: 3}
    per_layer: {include: encoder.*, min_ndim: 1}
"""


def callbacks_from(config, *options):
    """Return the callbacks of this package that LightningCLI makes of a file; it needs no model of its own."""
    cli = LightningCLI(
        WithData, run=False, seed_everything_default=False, args=["--config", str(config), *map(str, options)]
    )
    return [item for item in cli.trainer.callbacks if type(item).__module__.startswith("lightning_reg.")]


def printed(config, capsys):
    """Return what `--print_config` prints for a file."""
    with pytest.raises(SystemExit, match="0"):
        callbacks_from(config, "--print_config")
    return capsys.readouterr().out


@pytest.mark.twin
def test_every_callback_and_schedule_survives_yaml_print_config_and_yaml_again(tmp_path, capsys):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    callbacks = [json.dumps(plain(callback)) for callback in CALLBACKS]  # JSON is YAML as well
    schedules = [
        f"class_path: lightning_reg.L1Penalty\ninit_args:\n  strength: 0.1\n  schedule: {text}"
        for text, _ in SCHEDULES_IN_YAML.values()
    ]
    items = (
        "".join(f"- {textwrap.indent(item, '  ').lstrip()}\n" for item in [*callbacks, *schedules]) + NESTED.lstrip()
    )
    first.write_text(f"trainer:\n  logger: false\n  callbacks:\n{textwrap.indent(items, '  ')}")

    built = callbacks_from(first)
    second.write_text(printed(first, capsys))
    again = callbacks_from(second)

    *rest, target, monitor = map(repr, built)
    expected = [*CALLBACKS, *(L1Penalty(0.1, schedule=schedule) for _, schedule in SCHEDULES_IN_YAML.values())]
    assert rest == list(map(repr, expected))
    assert "Piecewise(values=(0.0, 0.5), durations=(10,)), Constant(value=1.0)), durations=(0.5,))" in target
    assert "module_types=(<class 'torch.nn.modules.linear.Linear'>,)" in target
    assert "Sparsity(threshold=0.001, dim=0)" in monitor
    assert list(map(repr, again)) == list(map(repr, built))
    assert printed(second, capsys) == second.read_text()
    for name in exported_for_yaml():
        assert f"class_path: lightning_reg.{name}\n" in second.read_text(), name


def exported_for_yaml():
    """Return the names of all callbacks, schedules and recipes of the package."""
    items = {name: getattr(lightning_reg, name) for name in lightning_reg.__all__}
    kinds = (Callback, lightning_reg.schedules.Schedule)
    classes = {name for name, item in items.items() if inspect.isclass(item) and issubclass(item, kinds)}
    recipes = {name for name, item in items.items() if inspect.isfunction(item) and name.endswith("_dropout")}
    return {name for name in classes if not inspect.isabstract(items[name])} | recipes


MISTAKES = {
    "wrong type": ("L1Penalty", "{strength: much}", 'Parser key "strength"'),
    "out of range": ("L1Penalty", "{strength: -1}", "`strength` must be a finite number >= 0, got -1"),
    "missing": ("SpectralConstraint", "{}", r'required: norm_bound|"norm_bound" is required'),
    "misspelt": ("L1Penalty", "{strengths: 1}", r"'strengths' is not (accepted|expected)"),
    "unknown class": ("L3Penalty", "{strength: 1}", "'lightning_reg.L3Penalty'"),
    "no such choice": ("L1Penalty", "{strength: 1, mode: lose}", 'Parser key "mode"'),
    "no bool": ("RegularizationMonitor", "{histograms: often}", 'Parser key "histograms"'),
    "a fraction for a count": ("MonteCarloDropout", "{num_samples: 1.5}", 'Parser key "num_samples"'),
    "too few": ("MonteCarloDropout", "{num_samples: 1}", "`num_samples` must be an int >= 2, got 1"),
    "in a selection": ("L2Penalty", "{strength: 1, select: {includes: a.*}}", r"'includes' is not (accepted|expected)"),
    "in a schedule": (
        "L1Penalty",
        "{strength: 1, schedule: {class_path: lightning_reg.Linear, init_args: {start: zero, end: 1, duration: 5}}}",
        'Parser key "start"',
    ),
    "out of range in a schedule": (
        "DropoutScheduler",
        "{schedule: {class_path: lightning_reg.late_dropout, init_args: {rate: 1.3}}}",
        r"`rate` must be in \[0, 1\), got 1.3",
    ),
    "unknown schedule": ("DropoutScheduler", "{schedule: lightning_reg.Liner}", "lightning_reg.Liner"),
    "misspelt in a sequence": (
        "DropoutScheduler",
        "{schedule: {class_path: lightning_reg.Sequence, init_args: {durations: [3], schedules:"
        " [lightning_reg.Constant, {class_path: lightning_reg.late_dropout, init_args: {rat: 0.3}}]}}}",
        r"'rat' is not (accepted|expected)",
    ),
    "too many pieces": (
        "DropoutScheduler",
        "{schedule: {class_path: lightning_reg.Piecewise, init_args: {values: [0, 1], durations: [3, 4]}}}",
        "`durations` must be one shorter than `values`",
    ),
    "in an inner penalty": (
        "TargetSparsity",
        "{target: 0.5, penalty: {class_path: lightning_reg.L1Penalty, init_args: {strength: 0, mode: loss}}}",
        "`penalty` must have mode='proximal'",
    ),
    "in a metric": (
        "RegularizationMonitor",
        "{metrics: {zeros: {class_path: lightning_reg.metrics.Sparsity, init_args: {dim: first}}}}",
        'Parser key "dim"',
    ),
    "a metric's name": (
        "RegularizationMonitor",
        "{metrics: {penalty: lightning_reg.metrics.Sparsity}}",
        "`metrics` must have names of letters",
    ),
}


@pytest.mark.parametrize(("name", "arguments", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_in_yaml_names_the_key_and_the_callback(tmp_path, capsys, name, arguments, message):
    config = tmp_path / "config.yaml"
    config.write_text(f"""
trainer:
  logger: false
  callbacks:
  - lightning.pytorch.callbacks.LearningRateMonitor
  - class_path: lightning_reg.{name}
    init_args: {arguments}
""")

    with pytest.raises((SystemExit, ValueError)) as caught:
        callbacks_from(config)

    # jsonargparse prints what it finds itself, and raises what a constructor does; older ones in other words.
    text = capsys.readouterr().err + str(caught.value)
    assert re.search(message, text)
    assert f"lightning_reg.{name}" in text
