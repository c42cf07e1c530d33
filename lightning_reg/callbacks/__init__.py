"""Lightning callbacks."""

from lightning_reg.callbacks.dropout import DropoutScheduler
from lightning_reg.callbacks.lipschitz import LipschitzMonitor
from lightning_reg.callbacks.mc_dropout import MonteCarloDropout
from lightning_reg.callbacks.monitor import RegularizationMonitor
from lightning_reg.callbacks.penalty import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, L2Penalty, Penalty
from lightning_reg.callbacks.spectral_constraint import SpectralConstraint
from lightning_reg.callbacks.spectral_norm import SpectralNormalization
from lightning_reg.callbacks.spectral_penalty import SpectralNormPenalty
from lightning_reg.callbacks.target_sparsity import TargetSparsity

__all__ = [
    "DropoutScheduler",
    "ElasticNetPenalty",
    "GroupLassoPenalty",
    "L1Penalty",
    "L2Penalty",
    "LipschitzMonitor",
    "MonteCarloDropout",
    "Penalty",
    "RegularizationMonitor",
    "SpectralConstraint",
    "SpectralNormPenalty",
    "SpectralNormalization",
    "TargetSparsity",
]
