"""Regularization for PyTorch Lightning: callbacks that mean the same in every way of training."""

from lightning_reg.callbacks import (
    ElasticNetPenalty,
    L1Penalty,
    L2Penalty,
    Penalty,
    RegularizationMonitor,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
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
    "ElasticNetPenalty",
    "Exponential",
    "L1Penalty",
    "L2Penalty",
    "Linear",
    "Penalty",
    "Piecewise",
    "RegularizationMonitor",
    "Select",
    "Sequence",
    "SpectralConstraint",
    "SpectralNormPenalty",
    "SpectralNormalization",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
]
