"""The truth for spectral callbacks: SVDs of dense matrices, and W trained by hand under W / sigma(W)."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

IMAGE = 16


def dense(module: nn.Module, weight: Tensor, size: int = IMAGE) -> Tensor:
    """Return the matrix of a layer, differentiable in `weight`: what it makes of the unit vectors, without its bias."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return weight.flatten(1)
    channels = weight.shape[0] if module.transposed else weight.shape[1] * module.groups
    shape = (channels, *[size] * (weight.ndim - 2))
    basis = torch.eye(channels * size ** (weight.ndim - 2), dtype=weight.dtype).view(-1, *shape)
    tensors = {"weight": weight} if module.bias is None else {"weight": weight, "bias": torch.zeros_like(module.bias)}
    return functional_call(module, tensors, (basis,)).flatten(1).mT


def norm(module: nn.Module, weight: Tensor | None = None, *, kind: str = "operator") -> Tensor:
    """Return the largest singular value of a layer by SVD; of a convolution the least upper bound over image sizes."""
    weight = module.weight if weight is None else weight
    if kind == "matrix" or not isinstance(module, nn.modules.conv._ConvNd):
        return torch.linalg.svdvals(weight.flatten(1).double())[0]
    groups = weight.double().chunk(module.groups)
    steps = [s // math.gcd(s, d) for s, d in zip(module.stride, module.dilation, strict=True)]
    return torch.stack([_largest_response(kernel, steps) for kernel in groups]).max()


def _largest_response(kernel, steps, points=24):
    """Return the largest singular value over frequencies, differentiable: around the best one the norm is flat."""
    dims = kernel.ndim - 2
    axis = [2 * math.pi * point / points for point in range(points)]
    frequencies = torch.tensor(list(itertools.product(axis, repeat=dims)), dtype=torch.float64)
    width = 2 * math.pi / points
    for _ in range(30):
        values = _responses(kernel.detach(), steps, frequencies)
        best = frequencies[values.argmax()]
        width /= 2
        steps_around = torch.tensor(list(itertools.product((0, -width, width), repeat=dims)), dtype=torch.float64)
        frequencies = best + steps_around
    if kernel.requires_grad:
        best = _where_flat(kernel.detach(), steps, best)
    return _responses(kernel, steps, best[None])[0]


def _where_flat(kernel, steps, near):
    """Return the frequency near a maximum where the slope is zero; the values alone tell it to 1e-8 only."""

    def largest(frequency):
        return _responses(kernel, steps, frequency[None])[0]

    slope = torch.autograd.functional.jacobian(largest, near)
    bend = torch.autograd.functional.hessian(largest, near)
    if not bend.isfinite().all():  # torch has none where singular values are equal
        return near
    move = torch.linalg.pinv(bend, rtol=1e-6) @ slope
    return near - move if move.norm() < 1e-6 else near


def _responses(kernel, steps, frequencies):
    outputs, inputs, *sizes = kernel.shape
    phases = list(itertools.product(*map(range, steps)))
    columns = dict.fromkeys(phases, 0)
    for tap in itertools.product(*map(range, sizes)):
        position = torch.tensor([t // s for t, s in zip(tap, steps, strict=True)], dtype=torch.float64)
        angle = frequencies @ position
        wave = torch.polar(torch.ones_like(angle), angle)[:, None, None]
        phase = tuple(t % s for t, s in zip(tap, steps, strict=True))
        columns[phase] = columns[phase] + wave * kernel[(slice(None), slice(None), *tap)]
    zero = torch.zeros(len(frequencies), outputs, inputs, dtype=torch.complex128)
    response = torch.cat([zero if isinstance(columns[phase], int) else columns[phase] for phase in phases], 2)
    return torch.linalg.svdvals(response)[:, 0]


class Loss(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module.loss(batch)


def normalized(module, kind="operator", bound=1.0):
    """Return every weight of two or more dimensions over its norm, differentiably, by name."""
    found = {}
    for path, layer in module.named_modules():
        for leaf, weight in layer.named_parameters(recurse=False):
            if weight.ndim > 1:
                found[f"{path}.{leaf}"] = weight * (bound / norm(layer, weight, kind=kind).to(weight.dtype))
    return found


def train_normalized(  # noqa: PLR0913  # everything a training loop may do
    module, batches, *, kind="operator", bound=1.0, epochs=2, accumulate=1, autocast=None
):
    """Train W while the loss sees W c / sigma(W); return all weights as the loss sees them."""
    optimizer = module.configure_optimizers()
    batches = list(batches)
    for _ in range(epochs):
        for index, batch in enumerate(batches):
            weights = {f"module.{name}": weight for name, weight in normalized(module, kind, bound).items()}
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = functional_call(Loss(module), weights, (batch,))
            (loss / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    seen = dict(module.named_parameters()) | normalized(module, kind, bound)
    return {name: weight.detach().clone() for name, weight in seen.items()}
