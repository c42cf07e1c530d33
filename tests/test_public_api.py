"""The package as its users import it."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from typing import Any

import pytest

import lightning_reg
from lightning_reg import ensemble, functional, metrics, schedules, tensorboard

PUBLIC = [
    "Constant",
    "Cosine",
    "DropoutScheduler",
    "ElasticNetPenalty",
    "Exponential",
    "GroupLassoPenalty",
    "L1Penalty",
    "L2Penalty",
    "Linear",
    "LipschitzMonitor",
    "MonteCarloDropout",
    "Penalty",
    "Piecewise",
    "RegularizationMonitor",
    "Select",
    "Sequence",
    "SpectralConstraint",
    "SpectralNormalization",
    "SpectralNormPenalty",
    "TargetSparsity",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
    "register_lipschitz_rule",
    "register_step_size",
]
ENSEMBLE = ["BootstrapSampler", "EnsemblePrediction", "average_predictions", "summarize_predictions"]
FUNCTIONAL = [
    "LipschitzReport",
    "conv_norm_bound",
    "elastic_net",
    "elastic_net_prox",
    "group_lasso",
    "group_soft_threshold",
    "jacobian_norm",
    "l1_norm",
    "lipschitz_bound",
    "matrix_norm",
    "operator_norm_estimate",
    "soft_threshold",
    "sparsity",
    "squared_l2_norm",
]
METRICS = ["LipschitzLowerBound", "Sparsity", "SpectralNorm", "WeightNorm"]
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
    ("module", "names"),
    [
        (lightning_reg, PUBLIC),
        (ensemble, ENSEMBLE),
        (functional, FUNCTIONAL),
        (metrics, METRICS),
        (schedules, SCHEDULES),
        (tensorboard, ["layout"]),
    ],
)
def test_the_public_names_change_only_on_purpose(module, names):
    assert module.__all__ == sorted(names)
    assert all(inspect.getdoc(getattr(module, name)) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        *PUBLIC,
        *(f"ensemble.{name}" for name in ENSEMBLE),
        *(f"functional.{name}" for name in FUNCTIONAL),
        *(f"metrics.{name}" for name in METRICS),
        "tensorboard.layout",
    ],
)
def test_a_public_name_shows_how_to_use_it(name):
    item: Any = lightning_reg
    for part in name.split("."):
        item = getattr(item, part)

    assert ">>> " in inspect.getdoc(item).partition("Example:\n")[2]


def test_the_package_tells_type_checkers_that_it_is_typed():
    assert files(lightning_reg).joinpath("py.typed").is_file()


def run_python(code: str) -> str:
    """Return what a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["lightning_reg", "lightning_reg.tensorboard"])
def test_importing_the_package_waits_for_neither_torch_nor_lightning(module):
    assert run_python(f"import sys, {module}; print({{'torch', 'lightning'}} & set(sys.modules))") == "set()"


def test_names_that_are_imported_on_first_use_are_those_that_type_checkers_see():
    tree = ast.parse(inspect.getsource(lightning_reg))
    imports = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lightning_reg")
        for alias in node.names
    }

    assert sorted(imports) == sorted(PUBLIC)
    for name, module in imports.items():
        assert getattr(lightning_reg, name) is getattr(import_module(module), name)


def test_modules_are_attributes_of_the_package_and_listed_before_they_are_imported():
    # In an order in which none has been imported by the one before.
    modules = ["tensorboard", "schedules", "selection", "functional", "ensemble"]
    modules += ["module_selection", "metrics", "callbacks"]
    names = ", ".join(f"lightning_reg.{module}.__name__" for module in modules)
    assert run_python(f"import lightning_reg; print({names})").split() == [f"lightning_reg.{name}" for name in modules]
    listed = run_python("import lightning_reg; print(*dir(lightning_reg))").split()
    assert {*modules, *PUBLIC} <= set(listed)


def test_a_star_import_gives_all_public_names():
    found = run_python("from lightning_reg import *; print(*(name for name in dir() if not name.startswith('_')))")

    assert found.split() == sorted(PUBLIC)


def test_a_name_that_does_not_exist_is_an_error_that_knows_a_near_one():
    with pytest.raises(AttributeError, match="module 'lightning_reg' has no attribute 'L1Penalt'"):
        lightning_reg.L1Penalt  # noqa: B018
    code = "import lightning_reg; lightning_reg.L1Penalt"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Did you mean: 'L1Penalty'?" in failed.stderr
