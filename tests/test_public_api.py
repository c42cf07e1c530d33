"""The package as its users import it."""

import inspect
from importlib.resources import files
from typing import Any

import pytest

import lightning_reg
from lightning_reg import functional, schedules

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
    "SpectralConstraint",
    "SpectralNormPenalty",
    "SpectralNormalization",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
]
FUNCTIONAL = [
    "conv_norm_bound",
    "elastic_net",
    "l1_norm",
    "matrix_norm",
    "operator_norm_estimate",
    "sparsity",
    "squared_l2_norm",
]
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
