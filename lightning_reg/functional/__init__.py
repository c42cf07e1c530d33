"""Pure functions of tensors: usable with no Trainer at all."""

from lightning_reg.functional.elastic_net import elastic_net
from lightning_reg.functional.norms import l1_norm, squared_l2_norm
from lightning_reg.functional.sparsity import sparsity

__all__ = ["elastic_net", "l1_norm", "sparsity", "squared_l2_norm"]
