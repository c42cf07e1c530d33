"""The distance of a matrix's rows, or of its columns if they are fewer, from orthonormal ones."""

from collections.abc import Callable

import torch
from torch import Tensor


def orthogonality(matrix: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    r"""Return :math:`\|G - I\|_F^2`, G the Gram matrix of the smaller side, and a function that returns the gradient.

    For a matrix W with more columns than rows, the gradient is :math:`4 (W W^H - I) W`. The value needs memory for G
    only.
    """
    is_wide = matrix.shape[-2] <= matrix.shape[-1]
    gram = matrix @ matrix.mH if is_wide else matrix.mH @ matrix
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    # Row by row: a long sum in float32 is off by 1e-4 on a CPU.
    value = torch.linalg.vector_norm(gram, dim=-1).square().sum()
    return value, lambda: 4 * (gram @ matrix if is_wide else matrix @ gram)
