"""Lightning callbacks."""

from lightning_reg.callbacks.penalty import ElasticNetPenalty, GroupLassoPenalty, L1Penalty, L2Penalty, Penalty

__all__ = ["ElasticNetPenalty", "GroupLassoPenalty", "L1Penalty", "L2Penalty", "Penalty"]
