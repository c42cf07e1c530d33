"""How far the rows of a matrix, or its columns if there are fewer, are from orthonormal ones."""

from collections.abc import Callable

import torch
from torch import Tensor


def orthogonality(matrix: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    r"""Return :math:`\|G - I\|_F^2`, G the Gram matrix of the smaller side, and what returns the gradient in W.

    That is :math:`4 (W W^H - I) W`, for a matrix with more columns than rows. G is all the memory that the value takes.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.mH if is_wide else matrix.mH @ matrix
    gram.diagonal().sub_(1)
    # Row by row: a long sum in float32 is off by 1e-4 on a CPU.
    value = torch.linalg.vector_norm(gram, dim=1).square().sum()
    return value, lambda: 4 * (gram @ matrix if is_wide else matrix @ gram)
