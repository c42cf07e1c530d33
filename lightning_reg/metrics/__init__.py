"""Metrics of weights, usable with no Trainer at all: they update from a module, a tensor or an iterable of tensors."""

from lightning_reg.metrics.sparsity import Sparsity
from lightning_reg.metrics.spectral_norm import SpectralNorm
from lightning_reg.metrics.weight_norm import WeightNorm

__all__ = ["Sparsity", "SpectralNorm", "WeightNorm"]
