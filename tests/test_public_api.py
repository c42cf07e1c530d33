"""The package as its users import it."""

import inspect
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
