"""The weights that spectral callbacks control, as layers, and weights that cannot be controlled."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_reg.functional.spectral.followed.gradient import add_gradient_, gradient_of
from lightning_reg.functional.spectral.followed.norms import ROUNDS, FollowedNorm, FollowedNorms, kernels_of
from lightning_reg.functional.spectral.layers import Layer, strongest_user
from lightning_reg.functional.tensors.shards import has_dtensors, local_part, local_slice, whole
from lightning_reg.selection.select import Selector, as_select
from lightning_reg.selection.weights import Selection, Weight

Norm = Literal["operator", "matrix"]
"""The norm of a convolution: of the map between images, or of the kernel reshaped to a matrix."""


def weights_of_layers(selection: Selection, select: Selector) -> Selection:
    """Return a selection without parameters that sit in no layer, such as scales, tokens and tables.

    They stay if a pattern of `select` chooses nothing else.
    """
    layers = [weight for weight in selection.chosen if not weight.outside]
    patterns = [glob for glob in as_select(select).include if not any(weight.matches(glob) for weight in layers)]
    left_out = {
        weight.name: weight.outside
        for weight in selection.chosen
        if weight.outside and not any(map(weight.matches, patterns))
    }
    chosen = tuple(weight for weight in selection.chosen if weight.name not in left_out)
    return replace(selection, chosen=chosen, left_out={**selection.left_out, **left_out})


def mask_of(weight: Weight) -> Tensor | None:
    """Return the mask that pruning has put on a weight, whole; None if there is none."""
    return None if weight.mask is None else whole(weight.mask)


def layer_of(weight: Weight) -> Layer:
    """Return the effective weight, differentiably: whole, and without pruned entries.

    A collective call for sharded weights.
    """
    tensor, mask = whole(weight.parameter), mask_of(weight)
    effective = tensor if mask is None else tensor * mask
    return Layer(weight.name, effective, strongest_user(weight.modules), weight.dims, weight.is_stack)


def is_matrix(weight: Weight) -> bool:
    """Tell whether a weight acts as a matrix; otherwise it acts as a convolution."""
    return Layer(weight.name, weight.parameter, strongest_user(weight.modules)).convolution() is None


def local(weight: Weight) -> Tensor:
    """Return this rank's part of a weight, to be changed in place."""
    return local_part(weight.parameter.detach())


def of_entries(value: Tensor, weight: Weight) -> Tensor:
    """Return a weight's number, or one for each matrix of a stack, in a shape that broadcasts to this rank's part."""
    return value if not value.ndim else local_slice(value[:, None, None].expand(weight.shape), weight.parameter)


def subject(weight: Weight) -> str:
    """Return the words of the plan for the matrices of a stack; "" for any other weight."""
    return f"each of {weight.shape[0]} matrices " if weight.is_stack else ""


def add_gradient(grad: Tensor, weight: Weight, norm: FollowedNorm, factor: Tensor | float) -> None:
    """Add `factor` times the gradient of the norm to `grad`, which is spread over ranks as the weight is."""
    mask = mask_of(weight)
    if mask is None and not has_dtensors([grad]):
        add_gradient_(grad, layer_of(weight), norm, factor)
        return
    direction = gradient_of(outline_of(weight), norm, factor)
    local_part(grad).add_(local_slice(direction if mask is None else direction * mask, weight.parameter))


def fits(weight: Weight, norm: FollowedNorm) -> bool:
    """Tell whether `norm` can belong to a weight: it is finite, and its factors have the right shapes."""
    groups, rows, columns = kernels_of(outline_of(weight), as_matrix=norm.as_matrix).shape
    numbers = (norm.sigma, norm.left, norm.right, norm.gain)
    shapes_fit = norm.left.shape == (groups, norm.left.shape[-2], rows) and norm.right.shape == (
        groups,
        norm.left.shape[-2],
        columns,
    )
    shapes_fit &= norm.sigma.shape == norm.gain.shape == ((groups,) if weight.is_stack else ())
    return shapes_fit and all(bool(part.isfinite().all()) for part in numbers)


class WeightNorms:
    """Norms of weights, each followed from where the last step ended.

    Args:
        as_matrices: Whether convolutions count as matrices.

    """

    def __init__(self, *, as_matrices: bool = False) -> None:
        self.followed = FollowedNorms(as_matrices=as_matrices)

    def advance(self, weights: Sequence[Weight], rounds: int = ROUNDS, steps: int = 1) -> list[FollowedNorm]:
        """Return the norm of each with its gradient in factors, from below; see `FollowedNorms.advance`.

        Nothing waits for the device. A collective call for sharded weights.
        """
        if has_dtensors([weight.parameter for weight in weights]):
            # One by one, because all of them at once may not fit.
            return [norm for weight in weights for norm in self.followed.advance([layer_of(weight)], rounds, steps)]
        return self.followed.advance([layer_of(weight) for weight in weights], rounds, steps)


def known_at_once(flags: Tensor) -> list[bool]:
    """Return flags, shape () or (entries,), on a CPU; nothing on a GPU, where reading them would wait."""
    return flags.reshape(-1).tolist() if flags.device.type == "cpu" else []


def outline_of(weight: Weight) -> Layer:
    """Return the layer without its values, for decisions by its shape alone."""
    outline = torch.empty(weight.shape, dtype=weight.parameter.dtype, device="meta")
    return Layer(weight.name, outline, strongest_user(weight.modules), weight.dims, weight.is_stack)
