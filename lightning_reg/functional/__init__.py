"""Pure functions of tensors: usable with no Trainer at all."""

from lightning_reg.functional.elastic_net import elastic_net
from lightning_reg.functional.group_lasso import group_lasso, group_soft_threshold
from lightning_reg.functional.jacobian import jacobian_norm
from lightning_reg.functional.lipschitz import LipschitzReport, lipschitz_bound
from lightning_reg.functional.norms import l1_norm, squared_l2_norm
from lightning_reg.functional.proximal import elastic_net_prox, soft_threshold
from lightning_reg.functional.sparsity import sparsity
from lightning_reg.functional.spectral import conv_norm_bound, matrix_norm, operator_norm_estimate

__all__ = [
    "LipschitzReport",
    "conv_norm_bound",
    "elastic_net",
    "elastic_net_prox",
    "group_lasso",
    "group_soft_threshold",
    "jacobian_norm",
    "l1_norm",
    "lipschitz_bound",
    "matrix_norm",
    "operator_norm_estimate",
    "soft_threshold",
    "sparsity",
    "squared_l2_norm",
]
