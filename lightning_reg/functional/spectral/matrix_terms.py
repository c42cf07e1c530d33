"""Sums over layers of a function of each layer's matrix. Sharded weights are gathered one layer at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from lightning_reg.functional.tensors.precision import reported, wide, without_autocast
from lightning_reg.functional.tensors.shards import local_part, local_slice, whole

MatrixTerm = Callable[[Tensor, torch.dtype], tuple[Tensor, Callable[[], Tensor]]]
"""Maps matrices, shape (..., rows, columns), and the type of their weight to the value of all together, shape (), and
a function that returns the gradient."""


def as_matrix(weight: Tensor, dim: int | None) -> Tensor:
    """Return a weight with dimension `dim` first and the others flattened, or a stack as it is; in float32 at least."""
    return wide(weight) if dim is None else wide(weight).movedim(dim, 0).flatten(1)


def from_matrix(matrix: Tensor, weight: Tensor, dim: int | None) -> Tensor:
    """Undo `as_matrix`: return a matrix in the shape of `weight`."""
    if dim is None:
        return matrix
    rows_first = (weight.shape[dim], *(size for other, size in enumerate(weight.shape) if other != dim % weight.ndim))
    return matrix.view(rows_first).movedim(0, dim)


def sum_of_terms(term: MatrixTerm, weights: Sequence[Tensor], dims: Sequence[int | None]) -> Tensor:
    """Return the sum of `term` over at least one weight, shape (), differentiable once.

    A collective call for `DTensor`s. Only the gradient of this rank's part is kept for `backward`.

    Args:
        term: The term of a matrix, or of all matrices of a stack.
        weights: The weights.
        dims: The dimension of each weight along which the rows of its matrix lie; `None` for a stack of matrices.

    """
    values = []
    for weight, dim in zip(weights, dims, strict=True):
        if torch.is_grad_enabled() and weight.requires_grad:
            values.append(_Term.apply(local_part(weight), weight.detach(), term, dim))  # type: ignore[no-untyped-call]
        else:
            values.append(_evaluate(term, weight.detach(), dim)[0])
    return torch.stack([value.to(values[0].device) for value in values]).sum()


@torch.no_grad()
def add_gradient_of_terms_(
    term: MatrixTerm, grads: Sequence[Tensor], weights: Sequence[Tensor], factor: float, dims: Sequence[int | None]
) -> None:
    """Add `factor` times the gradient of `sum_of_terms` to `grads`, in place; to the local parts of `DTensor`s."""
    for grad, weight, dim in zip(grads, weights, dims, strict=True):
        _, gradient = _evaluate(term, weight, dim)
        local_part(grad).add_(local_slice(gradient(), weight), alpha=factor)


@torch.no_grad()
def _evaluate(term: MatrixTerm, weight: Tensor, dim: int | None) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return the value, and a function that returns the whole gradient in the shape of the weight."""
    tensor = whole(weight)
    with without_autocast(tensor.device):
        value, gradient = term(as_matrix(tensor, dim), tensor.dtype)

    def in_shape() -> Tensor:
        with without_autocast(tensor.device):
            return from_matrix(gradient(), tensor, dim)

    return value.to(reported(tensor)), in_shape


class _Term(torch.autograd.Function):
    """The term of one weight, differentiable in this rank's part."""

    @staticmethod
    @override
    def forward(ctx: Any, part: Tensor, weight: Tensor, term: MatrixTerm, dim: int | None) -> Tensor:
        value, gradient = _evaluate(term, weight, dim)
        ctx.save_for_backward(local_slice(gradient(), weight).to(part.dtype))
        return value

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None
