"""Metrics that need no Trainer. Weight metrics update from a module, a tensor or an iterable of tensors."""

from lightning_reg.metrics.certified_accuracy import CertifiedAccuracy
from lightning_reg.metrics.lipschitz import LipschitzLowerBound
from lightning_reg.metrics.sparsity import Sparsity
from lightning_reg.metrics.spectral_norm import SpectralNorm
from lightning_reg.metrics.stable_rank import StableRank
from lightning_reg.metrics.weight_norm import WeightNorm

__all__ = ["CertifiedAccuracy", "LipschitzLowerBound", "Sparsity", "SpectralNorm", "StableRank", "WeightNorm"]
