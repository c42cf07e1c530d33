"""Averages of models or of passes under different dropout masks, and what models on halves agree on; no Trainer."""

from lightning_reg.ensemble.averages import EnsemblePrediction, average_predictions, summarize_predictions
from lightning_reg.ensemble.bootstrap import BootstrapSampler
from lightning_reg.ensemble.stability import StabilitySelection, stability_selection

__all__ = [
    "BootstrapSampler",
    "EnsemblePrediction",
    "StabilitySelection",
    "average_predictions",
    "stability_selection",
    "summarize_predictions",
]
