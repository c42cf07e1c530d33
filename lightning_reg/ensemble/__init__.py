"""Averages of models, or of one model's passes under different dropout masks, without a Trainer."""

from lightning_reg.ensemble.averages import EnsemblePrediction, average_predictions, summarize_predictions
from lightning_reg.ensemble.bootstrap import BootstrapSampler

__all__ = ["BootstrapSampler", "EnsemblePrediction", "average_predictions", "summarize_predictions"]
