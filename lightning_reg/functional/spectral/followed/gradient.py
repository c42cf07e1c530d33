"""The gradient of a followed norm in the layer's weight, from its factors."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_reg.functional.spectral.followed.norms import FollowedNorm, kernels_of
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.precision import without_autocast


def value_at(layer: Layer, norm: FollowedNorm) -> Tensor:
    """Return sigma with constant singular vectors, in its shape, linear in the weight and differentiable by autograd.

    It has the gradient of the norm, because sigma is stationary in the vectors and in the frequency.
    """
    with without_autocast(norm.left.device):
        kernels = kernels_of(layer, as_matrix=norm.as_matrix)
        return (norm.left * (norm.right @ kernels.mT)).sum((1, 2) if norm.sigma.ndim else None)


def gradient_of(layer: Layer, norm: FollowedNorm, factor: Tensor | float = 1.0) -> Tensor:
    """Return `factor` times the gradient of the norm, in the weight's shape; of a stack one factor for each matrix."""
    factor = _of_each(factor)
    if layer.tensor.is_complex():
        with torch.inference_mode(False), torch.enable_grad():  # noqa: FBT003  # torch's
            weight = layer.tensor.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(value_at(replace(layer, tensor=weight), norm).sum(), weight)
        return gradient * factor
    matrices = (norm.left * factor).mT @ norm.right
    return layer.from_matrices(matrices) if _is_matrix(layer, norm) else matrices.view(layer.tensor.shape)


def add_gradient_(grad: Tensor, layer: Layer, norm: FollowedNorm, factor: Tensor | float) -> None:
    """Add `gradient_of` to `grad`, in place."""
    groups, _, rows = norm.left.shape
    is_plain = not (layer.tensor.is_complex() or (_is_matrix(layer, norm) and layer.is_reordered))
    if is_plain and grad.is_contiguous() and grad.dtype == norm.left.dtype:
        # A matrix of low rank, as large as the weight, need not be written first.
        grad.view(groups, rows, norm.right.shape[-1]).baddbmm_((norm.left * _of_each(factor)).mT, norm.right)
    else:
        grad.add_(gradient_of(layer, norm, factor))


def _of_each(factor: Tensor | float) -> Tensor | float:
    return factor.view(-1, 1, 1) if isinstance(factor, Tensor) and factor.ndim == 1 else factor


def _is_matrix(layer: Layer, norm: FollowedNorm) -> bool:
    """Tell whether the factors are of the layer's matrix, not of a kernel as it is stored."""
    return norm.as_matrix or layer.convolution() is None
