"""The package as its users import it, and as LightningCLI builds it from YAML."""

import inspect
import math
from importlib.resources import files
from typing import Any

import jsonargparse
import pytest
import torch
from lightning.pytorch import Callback

import lightning_reg
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
    functional,
    late_dropout,
    schedules,
)

PUBLIC = [
    "Constant",
    "Cosine",
    "ElasticNetPenalty",
    "Exponential",
    "L1Penalty",
    "L2Penalty",
    "Linear",
    "Penalty",
    "Piecewise",
    "Select",
    "Sequence",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
]
FUNCTIONAL = ["elastic_net", "l1_norm", "squared_l2_norm"]
SCHEDULES = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Piecewise",
    "Schedule",
    "Sequence",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
    "resolve",
]


@pytest.mark.parametrize(
    ("module", "names"), [(lightning_reg, PUBLIC), (functional, FUNCTIONAL), (schedules, SCHEDULES)]
)
def test_the_public_names_change_only_on_purpose(module, names):
    assert module.__all__ == sorted(names)
    assert all(inspect.getdoc(getattr(module, name)) for name in names)


@pytest.mark.parametrize("name", [*PUBLIC, *(f"functional.{name}" for name in FUNCTIONAL)])
def test_a_public_name_shows_how_to_use_it(name):
    item: Any = lightning_reg
    for part in name.split("."):
        item = getattr(item, part)

    assert ">>> " in inspect.getdoc(item).partition("Example:\n")[2]


def test_the_package_tells_type_checkers_that_it_is_typed():
    assert files(lightning_reg).joinpath("py.typed").is_file()


def l1_penalty_from_yaml(argument: str, value: str) -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    config = parser.parse_string(
        f"callback:\n  class_path: lightning_reg.L1Penalty\n  init_args:\n    strength: 1e-4\n    {argument}: {value}"
    )
    # `instantiate` has this name since jsonargparse 4.49.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return getattr(instantiate(config).callback, argument)


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
def test_a_schedule_comes_from_yaml(text, expected):
    assert l1_penalty_from_yaml("schedule", text) == expected


def test_1_is_a_tick_in_yaml_and_1_point_0_the_whole_run():
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
def test_a_selection_comes_from_yaml(text, expected):
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
def test_a_mistake_in_yaml_shows_the_rule(argument, value, message):
    with pytest.raises(ValueError, match=message):
        l1_penalty_from_yaml(argument, value)
