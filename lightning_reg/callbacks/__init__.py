"""Lightning callbacks."""

from lightning_reg.callbacks.dropout import DropoutScheduler
from lightning_reg.callbacks.mc_dropout import MonteCarloDropout
from lightning_reg.callbacks.monitor import RegularizationMonitor
from lightning_reg.callbacks.penalty import ElasticNetPenalty, L1Penalty, L2Penalty, Penalty

__all__ = [
    "DropoutScheduler",
    "ElasticNetPenalty",
    "L1Penalty",
    "L2Penalty",
    "MonteCarloDropout",
    "Penalty",
    "RegularizationMonitor",
]
