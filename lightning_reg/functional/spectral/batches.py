"""Matrices of one shape, multiplied together without a copy of the large ones."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Smaller matrices are copied into one tensor: single calls would cost more than the work.
SMALL_ENTRIES = 1 << 16


class Matrices:
    """A batch of matrices that may lie in several tensors.

    Their products with a few vectors are small. So functions of these products take all matrices at once, whatever
    the size of the matrices.

    Args:
        parts: At least one; each of shape (matrices, rows, columns).

    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        is_small = math.prod(parts[0].shape) <= SMALL_ENTRIES
        self._parts = [torch.cat(tuple(parts))] if is_small and len(parts) > 1 else list(parts)
        self.shape = sum(len(part) for part in parts), *parts[0].shape[1:]
        self.dtype, self.device = parts[0].dtype, parts[0].device

    @property
    def mT(self) -> "Matrices":  # noqa: N802  # torch's name
        """The transposed matrices."""
        return Matrices([part.mT for part in self._parts])

    def times(self, vectors: Tensor) -> Tensor:
        """Multiply rows by each matrix: shape (matrices, vectors, rows) becomes (matrices, vectors, columns)."""
        return self._each(torch.matmul, vectors)

    def times_transposed(self, vectors: Tensor) -> Tensor:
        """Multiply rows by each transposed matrix: (matrices, vectors, columns) becomes (matrices, vectors, rows)."""
        return self._each(lambda rows, part: rows @ part.mT, vectors)

    def chosen(self, indices: Sequence[int]) -> "Matrices":
        """Return the matrices at these indices."""
        if len(self._parts) == 1:
            return Matrices([self._parts[0][list(indices)]])
        each = [matrix for part in self._parts for matrix in torch.split(part, 1)]
        return Matrices([each[index] for index in indices])

    def _each(self, product: Callable[[Tensor, Tensor], Tensor], vectors: Tensor) -> Tensor:
        if len(self._parts) == 1:
            return product(vectors, self._parts[0])
        rows = torch.split(vectors, [len(part) for part in self._parts])
        return torch.cat([product(*pair) for pair in zip(rows, self._parts, strict=True)])
