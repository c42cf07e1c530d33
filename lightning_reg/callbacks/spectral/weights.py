"""The weights that spectral callbacks control, as layers: what of a weight acts, and what cannot be controlled."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from lightning_reg.functional.spectral.estimates import NormEstimates, SingularPair
from lightning_reg.functional.spectral.gradient import add_norm_gradient_, norm_gradient
from lightning_reg.functional.spectral.layers import Layer
from lightning_reg.functional.tensors.precision import without_autocast
from lightning_reg.functional.tensors.shards import has_dtensors, local_part, local_slice, whole
from lightning_reg.selection.select import Selector, as_select
from lightning_reg.selection.weights import Selection, Weight

# Pixels along each dimension of the images on which convolutions are estimated; the monitor has the same.
_IMAGE_SIZE = 16
# From a random start: Lanczos iterations, and how often to go on from what they have found.
_START_ITERATIONS = 10
_START_ROUNDS = 2


def weights_of_layers(selection: Selection, select: Selector) -> Selection:
    """Return a selection without parameters that are no matrix or kernel of a layer, such as scales, tokens and tables.

    Where a pattern of `select` has chosen nothing else, they are what is meant, and stay.
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


def refuse_weights(weights: Sequence[Weight], name: str) -> None:
    """Raise for weights that are not the tensors of their layers, or complex.

    Raises:
        ValueError: If there is one.

    """
    for weight in weights:
        leaf = weight.plain_name.rpartition(".")[2]
        direct = any(weight.parameter is own for module in weight.modules for own in module.parameters(recurse=False))
        computed = not direct or not any(
            getattr(module, leaf, None) is weight.parameter or _mask(module, leaf) is not None
            for module in weight.modules
        )
        if computed:
            msg = (
                f"{name} cannot control {weight.name!r}, from which another parametrization computes the weight of the"
                " layer. Remove that parametrization (weight norm, torch's spectral norm), or leave the weight out:"
                f" `select=Select(exclude={weight.plain_name!r})`."
            )
            raise ValueError(msg)
        if weight.parameter.is_complex():
            msg = (
                f"{name} takes real weights, but {weight.name!r} is {weight.parameter.dtype}."
                f" Leave it out: `select=Select(exclude={weight.plain_name!r})`."
            )
            raise ValueError(msg)


def mask_of(weight: Weight) -> Tensor | None:
    """Return the mask that pruning has put on a weight, whole; None if there is none."""
    return _mask(weight.modules[0], weight.plain_name.rpartition(".")[2])


def layer_of(weight: Weight) -> Layer:
    """Return what acts of the weight, differentiably: whole, and without what is pruned.

    A collective call for sharded weights.
    """
    tensor, mask = whole(weight.parameter), mask_of(weight)
    return Layer(weight.name, tensor if mask is None else tensor * mask, weight.modules[0], weight.dims)


def is_matrix(weight: Weight) -> bool:
    """Tell whether a weight acts as the matrix that it is, or that its rows make; else as a convolution."""
    return Layer(weight.name, weight.parameter, weight.modules[0]).convolution() is None


def local(weight: Weight) -> Tensor:
    """Return this rank's part of a weight, to be changed in place."""
    return local_part(weight.parameter.detach())


def add_gradient(grad: Tensor, weight: Weight, pair: SingularPair, factor: Tensor | float) -> None:
    """Add `factor` times the gradient of the norm to `grad`, which is spread over ranks as the weight is."""
    layer, mask = layer_of(weight), mask_of(weight)
    if mask is None and not has_dtensors([grad]):
        add_norm_gradient_(grad, layer, pair, factor)
        return
    direction = norm_gradient(layer, pair, factor)
    local_part(grad).add_(local_slice(direction if mask is None else direction * mask, weight.parameter))


class WeightNorms:
    """Estimates of the norms of weights, each from where the last one ended.

    Args:
        as_matrices: Whether convolutions count as matrices.

    """

    def __init__(self, *, as_matrices: bool = False) -> None:
        self._as_matrices = as_matrices
        self._estimates = NormEstimates(_IMAGE_SIZE)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """Where estimates ended, by the names of the weights; put others here to go on from those."""
        return self._estimates.vectors

    def pairs(self, weights: Sequence[Weight], iterations: int) -> list[SingularPair]:
        """Return the norm of each with its singular vectors, from below; of one that is new, many iterations long.

        Nothing waits for the device. A collective call for sharded weights.
        """
        for weight in weights:
            if weight.name not in self.vectors:
                for _ in range(_START_ROUNDS):
                    self._pairs([weight], _START_ITERATIONS)
        if has_dtensors([weight.parameter for weight in weights]):
            # One by one, for all of them at once may not fit.
            return [pair for weight in weights for pair in self._pairs([weight], iterations)]
        return self._pairs(weights, iterations) if weights else []

    def _pairs(self, weights: Sequence[Weight], iterations: int) -> list[SingularPair]:
        layers = [layer_of(weight) for weight in weights]
        if self._as_matrices:
            layers = [Layer(layer.name, layer.matrix()) for layer in layers]
        with without_autocast(layers[0].tensor.device):
            return self._estimates.pairs(layers, iterations)


def _mask(module: nn.Module, leaf: str) -> Tensor | None:
    mask = getattr(module, f"{leaf}_mask", None)
    return whole(mask) if isinstance(mask, Tensor) else None
