"""Regularization for PyTorch Lightning: callbacks that mean the same in every way of training."""

from lightning_reg.callbacks import (
    DropoutScheduler,
    ElasticNetPenalty,
    L1Penalty,
    L2Penalty,
    MonteCarloDropout,
    Penalty,
    RegularizationMonitor,
)
from lightning_reg.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Piecewise,
    Sequence,
    curriculum_dropout,
    early_dropout,
    late_dropout,
)
from lightning_reg.selection import Select

__all__ = [
    "Constant",
    "Cosine",
    "DropoutScheduler",
    "ElasticNetPenalty",
    "Exponential",
    "L1Penalty",
    "L2Penalty",
    "Linear",
    "MonteCarloDropout",
    "Penalty",
    "Piecewise",
    "RegularizationMonitor",
    "Select",
    "Sequence",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
]
