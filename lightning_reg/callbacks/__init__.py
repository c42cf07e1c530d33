"""Lightning callbacks."""

from lightning_reg.callbacks.monitor import RegularizationMonitor
from lightning_reg.callbacks.penalty import ElasticNetPenalty, L1Penalty, L2Penalty, Penalty
from lightning_reg.callbacks.spectral_constraint import SpectralConstraint
from lightning_reg.callbacks.spectral_norm import SpectralNormalization
from lightning_reg.callbacks.spectral_penalty import SpectralNormPenalty

__all__ = [
    "ElasticNetPenalty",
    "L1Penalty",
    "L2Penalty",
    "Penalty",
    "RegularizationMonitor",
    "SpectralConstraint",
    "SpectralNormPenalty",
    "SpectralNormalization",
]
