"""Regularization for PyTorch Lightning: callbacks that mean the same in every way of training."""

from lightning_reg.callbacks import (
    DropoutScheduler,
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    LipschitzMonitor,
    MonteCarloDropout,
    Penalty,
    RegularizationMonitor,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
    TargetSparsity,
)
from lightning_reg.functional.lipschitz import register_lipschitz_rule
from lightning_reg.functional.step_size import register_step_size
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
    "SpectralNormPenalty",
    "SpectralNormalization",
    "TargetSparsity",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
    "register_lipschitz_rule",
    "register_step_size",
]
