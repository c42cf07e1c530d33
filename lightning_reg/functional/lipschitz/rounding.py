r"""ECLipsE-Fast: what chains of matrices and monotone activations do together, less than each does by itself.

What is known of differences at one place in a chain, caused by a difference :math:`\delta_0` of its input, is

.. math:: \delta^T R^{-1} \delta \le g^2 \|\delta_0\|^2, \qquad 0 \preceq R \preceq 1,

with :math:`R = 1` at the input. A matrix W makes it :math:`W R W^T`, exactly. An activation of slopes in [0, 1] has
:math:`\delta_y^T (\delta_x - \delta_y) \ge 0`; with the multiplier of Xu & Sivaranjani, 2, it follows that
R becomes :math:`(2 - R)^{-1}`, which is below 1 in all directions but the largest of R.

Reference: Xu & Sivaranjani, ECLipsE: Efficient Compositional Lipschitz Constant Estimation for Deep Neural Networks,
2024, arXiv:2404.04375.
"""

import math

import torch
from torch import Tensor

from lightning_reg.functional.spectral.norms import matrix_norm

# More than float64 rounds.
UPWARDS = 1 + 1e-9
# More than float32 rounds.
FAR_UPWARDS = 1 + 1e-5
# Larger matrices are measured in float32.
_PRECISE = 1 << 22


def norm_upwards(weight: Tensor) -> float:
    """Return the spectral norm of a matrix, rounded up; NaN if it is not finite."""
    if weight.numel() <= _PRECISE:
        return float(matrix_norm(precise(weight))) * UPWARDS
    return float(matrix_norm(weight)) * FAR_UPWARDS


def precise(tensor: Tensor) -> Tensor:
    """Return `tensor` in double precision, on the CPU if its device has none."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def times(bound: float, factor: float) -> float:
    """Return the product, in which 0 makes even infinity 0: what has no slope does not pass anything on."""
    if bound == 0 or factor == 0:
        return 0.0 if not (math.isnan(bound) or math.isnan(factor)) else math.nan
    return bound * factor
