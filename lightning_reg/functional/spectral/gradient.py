"""The norm of a layer as a function of its weight, with the singular vectors held constant, and its gradient."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_reg.functional.spectral.estimates import SingularPair
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.precision import reported, without_autocast


def norm_at(layer: Layer, pair: SingularPair) -> Tensor:
    """Return sigma = <u, A(w) v>, shape (), linear in the weight, and differentiable in it by autograd.

    Its gradient is that of the norm itself if u and v are the singular vectors: sigma is stationary in them.
    """
    u, v = pair.u, pair.v
    convolution = layer.convolution() if v.ndim > 1 else None
    with without_autocast(u.device):
        if convolution is None:
            return u @ (layer.matrix() @ v)
        weight = layer.tensor.to(reported(layer.tensor))
        return torch.sum(u * convolution.forward(weight, v[None], tuple(v.shape[1:]))[0])


def norm_gradient(layer: Layer, pair: SingularPair, factor: Tensor | float = 1.0) -> Tensor:
    """Return `factor` times the gradient of `norm_at` in the weight, in the weight's shape.

    For a matrix it is u v^T, for a convolution the gradient of its kernel at the image v for the output u.
    """
    if pair.v.ndim == 1 and not layer.tensor.is_complex():
        return layer.from_matrix(torch.outer(pair.u * factor, pair.v))
    with torch.inference_mode(False), torch.enable_grad():  # noqa: FBT003  # torch's
        weight = layer.tensor.detach().requires_grad_()
        norm = norm_at(replace(layer, tensor=weight), pair)
        (gradient,) = torch.autograd.grad(norm, weight)
    return gradient * factor


def add_norm_gradient_(grad: Tensor, layer: Layer, pair: SingularPair, factor: Tensor | float) -> None:
    """Add `norm_gradient` to `grad`, in place."""
    is_matrix = pair.v.ndim == 1 and not layer.is_reordered
    if is_matrix and grad.ndim > 1 and grad.is_contiguous() and grad.dtype == pair.u.dtype:
        # A matrix of rank one, as large as the weight, need not be written first.
        grad.flatten(1).addr_(pair.u * factor, pair.v)
    else:
        grad.add_(norm_gradient(layer, pair, factor))
