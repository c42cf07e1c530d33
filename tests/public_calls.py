"""A good call of all that is public, and which other kinds of values each argument takes; see `test_wrong_kinds`."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import lightning_reg
from lightning_reg import ensemble, functional, metrics, schedules, tensorboard
from lightning_reg.callbacks.trainer.settings import settings_of
from lightning_reg.ensemble import EnsemblePrediction, StabilitySelection
from lightning_reg.functional import LipschitzReport
from lightning_reg.schedules import Schedule
from tests.documented import EXPORTED, documented


@dataclass
class Argument:
    """A good value of an argument, the kinds that are good as well, and what else a refusal of it may name.

    Without kinds nobody has said which are good: each may be refused, or not.
    """

    value: Any
    also: Iterable[str] | None = None
    names: Iterable[str] = ()


def good(value: Any, *also: str) -> Argument:
    return Argument(value, also)


def number(value: float) -> Argument:
    return good(value, "-1", "1e39")


def strength(value: float) -> Argument:
    """One whose weights are not known yet."""
    return good(value, "1e39")


def boolean(value: bool) -> Argument:
    return good(value, "True")


def weights() -> Argument:
    every_iterable = ("list", "set", "[tensor]", "generator")
    return good([torch.tensor([[3.0, 0.0], [4.0, 0.0]])], "tensor", "scalar tensor", "complex tensor", *every_iterable)


def without(argument: Argument, *kinds: str) -> Argument:
    return replace(argument, also=set(argument.also) - set(kinds))


# A string is a glob; what is no `Select` is what one would include.
SELECT = Argument("encoder.*", also=("None", "'False'"), names=("include",))
SCHEDULE = good(lambda step: 1.0, "None", "lambda", "module")
DURATION = good(10, "10**400")
PENALTY = {"strength": strength(0.1), "select": SELECT, "mode": good("grad"), "schedule": SCHEDULE}
RAMP = {"start": number(1.0), "end": number(0.5), "duration": DURATION}
RECIPE = {"rate": good(0.5), "duration": DURATION}
# A threshold of one entry of a list has to be there for each weight.
THRESHOLD = good(0.5, "tensor", "scalar tensor", "whole tensor", "[tensor]")
GROUPED = replace(without(weights(), "scalar tensor"), names=("dim",))  # which a scalar has not
REAL = without(weights(), "complex tensor")
REAL_GROUPED = without(GROUPED, "complex tensor")
EVERY_TENSOR = ("tensor", "whole tensor", "complex tensor")
DIM = good(0, "-1")
# Of weights that are not known yet.
LATER_DIM = good(0, "-1", "10**400")
PREDICTIONS = good(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]), "tensor", "whole tensor")
AVERAGED = {"aggregate": good("arithmetic"), "dim": good(1, "-1", "10**400")}


class Own(lightning_reg.Penalty):
    def penalty(self, weights):
        return sum(weight.square().sum() for weight in weights)


class OwnConstraint(lightning_reg.Constraint):
    def project(self, weights):
        pass


class OwnOptimizer(torch.optim.Optimizer):
    pass


class OwnLayer(nn.Module):
    pass


def proximal() -> lightning_reg.Penalty:
    return lightning_reg.L1Penalty(0.0, mode="proximal")


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Argument]]] = {
    # Schedules
    "Constant": (schedules.Constant, {"value": number(1.0)}),
    "Linear": (schedules.Linear, RAMP),
    "Cosine": (schedules.Cosine, RAMP),
    "Exponential": (schedules.Exponential, {**RAMP, "start": good(1.0, "1e39"), "end": good(0.5, "1e39")}),
    "Piecewise": (schedules.Piecewise, {"values": good((0.0, 1.0)), "durations": good((10,))}),
    "Sequence": (
        schedules.Sequence,
        {"schedules": good((schedules.Constant(), schedules.Constant())), "durations": good([0.5])},
    ),
    "early_dropout": (schedules.early_dropout, RECIPE),
    "late_dropout": (schedules.late_dropout, RECIPE),
    "curriculum_dropout": (schedules.curriculum_dropout, RECIPE),
    "resolve": (
        schedules.resolve,
        {
            "schedule": good(schedules.Linear(0.0, 1.0, 10), "lambda", "module"),
            "total": good(100, "nan", "inf", "1e39"),
        },
    ),
    # Callbacks
    "Penalty": (Own, PENALTY),
    "L1Penalty": (lightning_reg.L1Penalty, PENALTY),
    "L2Penalty": (lightning_reg.L2Penalty, PENALTY),
    "ElasticNetPenalty": (
        lightning_reg.ElasticNetPenalty,
        {"alpha": strength(0.1), "l1_ratio": good(0.5)} | {n: a for n, a in PENALTY.items() if n != "strength"},
    ),
    "GroupLassoPenalty": (lightning_reg.GroupLassoPenalty, {**PENALTY, "dim": good(0, "-1", "10**400")}),
    "NuclearNormPenalty": (lightning_reg.NuclearNormPenalty, PENALTY),
    "OrthogonalPenalty": (lightning_reg.OrthogonalPenalty, {**PENALTY, "dim": good(1, "-1", "10**400")}),
    "AnchorPenalty": (
        lightning_reg.AnchorPenalty,
        {**PENALTY, "anchor": Argument("start"), "norm": good("l1"), "offload": boolean(False)},
    ),
    "ActivityPenalty": (
        lightning_reg.ActivityPenalty,
        {
            "strength": strength(0.1),
            "select": replace(SELECT, also=("'False'",)),
            "norm": good("l2"),
            "schedule": SCHEDULE,
        },
    ),
    "MarginPenalty": (
        lightning_reg.MarginPenalty,
        {
            "strength": strength(0.1),
            "radius": strength(0.5),
            "target": good("network", "None", "'False'"),
            "label_transform": good(None, "None", "lambda", "module"),
            "schedule": SCHEDULE,
        },
    ),
    "MCPPenalty": (lightning_reg.MCPPenalty, {**PENALTY, "gamma": good(3.0, "1e39")}),
    "SpectralNormPenalty": (lightning_reg.SpectralNormPenalty, {**PENALTY, "norm": good("matrix")}),
    "TargetSparsity": (
        lightning_reg.TargetSparsity,
        {
            "penalty": good(proximal()),
            "target": good(0.5),
            "scope": good("layer"),
            "floor": good(0.1),
            "schedule": SCHEDULE,
        },
    ),
    "RegularizationPath": (
        lightning_reg.RegularizationPath,
        {
            "penalty": good(proximal()),
            "strengths": good(5),
            "smallest": good(0.01),
            "epochs": good(2),
            "tolerance": good(1e-3, "None", "1e39"),
            "monitor": Argument("val_loss"),
            "monitor_mode": good("max"),
            "rule": good("one_se"),
            "direction": good("up"),
            "restore": boolean(True),
            "relaxed_epochs": good(2),
        },
    ),
    "Constraint": (OwnConstraint, {"select": SELECT}),
    "MaxNorm": (lightning_reg.MaxNorm, {"max_norm": strength(1.0), "dim": LATER_DIM, "select": SELECT}),
    "UnitNorm": (lightning_reg.UnitNorm, {"dim": LATER_DIM, "select": SELECT}),
    "MinMaxNorm": (
        lightning_reg.MinMaxNorm,
        {
            "min_norm": good(0.0),
            "max_norm": strength(1.0),
            "rate": good(0.5),
            "dim": LATER_DIM,
            "select": SELECT,
        },
    ),
    "NonNegative": (lightning_reg.NonNegative, {"select": SELECT}),
    "KeepZeros": (lightning_reg.KeepZeros, {"start": good(0.5), "select": SELECT}),
    "NMSparsity": (
        lightning_reg.NMSparsity,
        {"n": good(2), "m": good(4), "dim": LATER_DIM, "schedule": SCHEDULE, "select": SELECT},
    ),
    "SpectralNormalization": (
        lightning_reg.SpectralNormalization,
        {"norm_bound": strength(1.0), "select": SELECT, "norm": good("matrix"), "power_iterations": good(1)},
    ),
    "SpectralConstraint": (
        lightning_reg.SpectralConstraint,
        {"norm_bound": strength(1.0), "select": SELECT, "method": good("clip")},
    ),
    "DropoutScheduler": (
        lightning_reg.DropoutScheduler,
        {
            "schedule": good(schedules.Constant(0.5), "lambda", "module"),
            "select": SELECT,
            "attribute": good(["p"], "None", "'False'", "list"),
            "scale": good("depth", "True"),
            "interval": good("epoch"),
        },
    ),
    "MonteCarloDropout": (
        lightning_reg.MonteCarloDropout,
        {
            "num_samples": good(20),
            "aggregate": good("geometric"),
            "seed": good(0, "None"),
            "softmax": boolean(False),
            "dim": good(1, "-1", "10**400"),
            "attribute": good(["p"], "None", "'False'", "list"),
        },
    ),
    "RegularizationMonitor": (
        lightning_reg.RegularizationMonitor,
        {
            "metrics": good({"norm": metrics.WeightNorm()}, "None"),
            "select": SELECT,
            "per_layer": replace(without(SELECT, "None"), also=("True", "'False'")),
            "histograms": boolean(False),
            "every_n_epochs": good(1),
            "updates": boolean(False),
            "layout": boolean(False),
            "hparams": boolean(False),
            "html": boolean(False),
        },
    ),
    "LipschitzMonitor": (
        lightning_reg.LipschitzMonitor,
        {
            "target": good("encoder", "None", "'False'"),
            "every_n_epochs": good(1),
            "every_n_steps": good(1),
            "samples": good(1),
            "budget": good(0, 0.5),
            "input_transform": good(lambda batch: batch[0], "None", "lambda", "module"),
            "certify": good((0.1, 0.25), "None"),
            "label_transform": good(lambda batch: batch[1], "None", "lambda", "module"),
            "all_labels": boolean(False),
            "prog_bar": boolean(False),
            "layout": boolean(False),
        },
    ),
    # Choices and rules
    "Select": (
        lightning_reg.Select,
        {
            "include": good("encoder.*", "'False'"),
            "exclude": good("head.*", "'False'", "list"),
            "module_types": good((nn.Linear,), "list"),
            "min_ndim": good(1),
        },
    ),
    "register_layer": (
        lightning_reg.register_layer,
        {
            "module_type": good(OwnLayer),
            "output_dim": good(1, "None", "-1", "10**400"),
            "weight": good("kernel", "'False'"),
        },
    ),
    "register_lipschitz_rule": (
        lightning_reg.register_lipschitz_rule,
        {"target": good(OwnLayer, "lambda"), "rule": good(lambda module, x: 1.0, "lambda", "module")},
    ),
    "register_step_size": (
        lightning_reg.register_step_size,
        {
            "optimizer_type": good(OwnOptimizer),
            "function": good(lambda weights, states, group: [1.0] * len(weights), "lambda", "module"),
            "elementwise": boolean(False),
        },
    ),
    # Maths
    "l1_norm": (functional.l1_norm, {"weights": weights()}),
    "squared_l2_norm": (functional.squared_l2_norm, {"weights": weights()}),
    "elastic_net": (functional.elastic_net, {"weights": weights(), "alpha": good(0.1), "l1_ratio": good(0.5)}),
    "group_lasso": (functional.group_lasso, {"weights": GROUPED, "strength": good(0.1), "dim": DIM}),
    "sparsity": (
        functional.sparsity,
        {"weights": weights(), "threshold": good(0.1, "1e39"), "dim": good(None, "None", "-1")},
    ),
    "soft_threshold": (
        functional.soft_threshold,
        {"weights": REAL, "threshold": THRESHOLD, "inplace": boolean(False)},
    ),
    "elastic_net_prox": (
        functional.elastic_net_prox,
        {"weights": REAL, "alpha": THRESHOLD, "l1_ratio": good(0.5), "inplace": boolean(False)},
    ),
    "group_soft_threshold": (
        functional.group_soft_threshold,
        {"weights": REAL_GROUPED, "threshold": THRESHOLD, "dim": DIM, "inplace": boolean(False)},
    ),
    "mcp": (functional.mcp, {"weights": REAL, "strength": good(0.1), "gamma": good(3.0, "1e39")}),
    "mcp_prox": (
        functional.mcp_prox,
        {
            "weights": REAL,
            "strength": good(0.1),
            "gamma": good(3.0, "1e39"),
            "step_size": THRESHOLD,
            "inplace": boolean(False),
        },
    ),
    "matrix_norm": (functional.matrix_norm, {"weight": good(torch.eye(2), "tensor", "complex tensor")}),
    "conv_norm_bound": (
        functional.conv_norm_bound,
        {
            "weight": good(torch.ones(1, 1, 3)),
            "stride": good(1),
            "padding": good(1),
            "dilation": good(1),
            "groups": good(1),
            "padding_mode": good("zeros"),
            "transposed": boolean(False),
            "output_padding": good(0),
            "input_size": good(8, "None"),
            "grid": good(16),
        },
    ),
    "factorize": (
        functional.factorize,
        {"module": good(nn.Linear(2, 2), "module"), "tolerance": good(None, "None")},
    ),
    "operator_norm_estimate": (
        functional.operator_norm_estimate,
        {
            "apply": good(lambda x: 2 * x, "lambda", "module"),
            "input_shape": good((2, 2)),
            "iterations": good(2),
            "state": good(None, "None", "tensor"),
            "method": good("power"),
            "adjoint": good(lambda x: 2 * x, "None", "lambda", "module"),
            "dtype": good(torch.float64, "None"),
            "device": good("cpu", "None"),
        },
    ),
    "jacobian_norm": (
        functional.jacobian_norm,
        {"fn": good(torch.square, "lambda", "module"), "x": good(torch.ones(2, 2), "tensor"), "iterations": good(2)},
    ),
    "lipschitz_bound": (
        functional.lipschitz_bound,
        {
            "module": good(nn.Tanh(), "module"),
            "example_input": good(
                torch.ones(1, 2), *EVERY_TENSOR, "scalar tensor", "[tensor]", "[[tensor]]", "{'a': tensor}"
            ),
            "fold_batch_norm": boolean(True),
            "center": good(None, "None", *EVERY_TENSOR, "scalar tensor", "[tensor]", "[[tensor]]", "{'a': tensor}"),
            "radius": good(0.5, "inf", "1e39"),
            "all_labels": boolean(False),
        },
    ),
    "margin_bounds": (
        functional.margin_bounds,
        {
            "module": good(nn.Linear(2, 2), "module"),
            "example_input": Argument(torch.ones(1, 2), names=("module",)),  # whose output may be no logits
        },
    ),
    "certified_radius": (
        functional.certified_radius,
        {"logits": good(torch.ones(1, 2), "tensor"), "margin_bounds": good(torch.ones(2, 2), "tensor")},
    ),
    # Metrics
    "CertifiedAccuracy": (metrics.CertifiedAccuracy, {"radii": good((0.1, 0.25))}),
    "WeightNorm": (metrics.WeightNorm, {"p": good(2, "1e39")}),
    "WeightNorm.update": (metrics.WeightNorm().update, {"weights": weights()}),
    "Sparsity": (metrics.Sparsity, {"threshold": strength(0.1), "dim": good(0, "None", "-1", "10**400")}),
    "Sparsity.update": (metrics.Sparsity().update, {"weights": weights()}),
    "SpectralNorm": (metrics.SpectralNorm, {"iterations": good(5, "None"), "input_size": good(16)}),
    "SpectralNorm.update": (metrics.SpectralNorm().update, {"weights": weights()}),
    "LipschitzLowerBound": (metrics.LipschitzLowerBound, {"reduction": good("mean"), "iterations": good(5)}),
    "LipschitzLowerBound.update": (
        metrics.LipschitzLowerBound().update,
        {"fn": good(torch.square, "lambda", "module"), "x": good(torch.ones(2, 2), "tensor")},
    ),
    # Ensembles
    "BootstrapSampler": (
        ensemble.BootstrapSampler,
        {
            "data": good(range(5), *EVERY_TENSOR, "[object]", "[tensor]", "[[tensor]]", "{'a': tensor}"),
            "seed": good(0),
        },
    ),
    "average_predictions": (
        ensemble.average_predictions,
        {"predictions": replace(PREDICTIONS, also=(*PREDICTIONS.also, "[tensor]")), **AVERAGED},
    ),
    "summarize_predictions": (
        ensemble.summarize_predictions,
        {"predictions": PREDICTIONS, **AVERAGED},
    ),
    "stability_selection": (
        ensemble.stability_selection,
        {
            "fit": good(lambda rows: torch.ones(1, 2, dtype=torch.bool)),
            "num_samples": good(10),
            "num_halves": good(2),
            "threshold": good(0.6),
            "strengths": good([0.1], "None"),
            "names": good(["a", "b"], "None"),
            "seed": good(0),
        },
    ),
    "layout": (tensorboard.layout, {"prefix": good("run", "'False'")}),
}
# Types that functions return, and classes for subclassing.
NOT_CALLED = {EnsemblePrediction, LipschitzReport, Schedule, StabilitySelection}
PUBLIC = {
    name: item
    for module in (lightning_reg, ensemble, functional, metrics, schedules, tensorboard)
    for name in module.__all__
    if (item := getattr(module, name)) not in NOT_CALLED
}
VALUES = {argument: given.value for _, arguments in CALLS.values() for argument, given in arguments.items()}


def parameters_of(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(call).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD}


def arguments_of(item: Callable[..., Any]) -> dict[str, Argument]:
    """Return good arguments: for a callback from its docstring, for another item by the names of arguments above."""
    values = settings_of(documented(item)) if item in EXPORTED else VALUES
    parameters = parameters_of(item)
    names = ("include", *parameters)
    return {name: Argument(values.get(name, given.default), names=names) for name, given in parameters.items()}


# New public names are included automatically.
CALLS |= {name: (item, arguments_of(item)) for name, item in PUBLIC.items() if name not in CALLS}
