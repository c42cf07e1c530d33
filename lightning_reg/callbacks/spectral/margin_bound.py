"""The bound of a classifier's margins in a training step, differentiable in its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_reg.callbacks.spectral.step_norms import StepNorms
from lightning_reg.callbacks.spectral.weights import layer_of
from lightning_reg.callbacks.trainer.packages import MisconfigurationException
from lightning_reg.functional.lipschitz.nested import found, replaced
from lightning_reg.functional.lipschitz.product import MarginProduct, NoProductError, margin_product
from lightning_reg.functional.spectral.followed.gradient import value_at
from lightning_reg.functional.tensors.shards import has_dtensors
from lightning_reg.selection import Weight


class MarginBound:
    """The bound of margins as a product, with norms that are followed over the steps.

    Args:
        target: The classifier.
        weights: Its weights by their names in it.

    """

    def __init__(self, target: nn.Module, weights: Mapping[str, Weight]) -> None:
        self._target, self._weights = target, weights
        # Not later: FSDP2 replaces parameters of modules once a forward pass has run.
        self._computed = [name for name, weight in weights.items() if weight.is_computed_from]
        self.products: dict[tuple[Any, ...], MarginProduct] = {}
        self.norms = StepNorms()
        self.is_sharded = has_dtensors(weight.parameter for weight in weights.values())
        """Whether ranks have parts of weights."""

    def at(self, inputs: Sequence[Any], count: int) -> MarginProduct:
        """Return the product for inputs of these sizes; found once, and then known.

        Args:
            inputs: The arguments of the classifier.
            count: The number of samples in them.

        """
        tensors = list(found(inputs, Tensor))
        sizes = tuple((tensor.shape[1:], tensor.dtype) for tensor in tensors)
        if sizes not in self.products:
            if self.products and self.is_sharded:
                # Other ranks may have inputs of a known size, and would not take part in collecting the weights.
                msg = "MarginPenalty with sharded weights takes inputs of one size only. Use DDP, or one size."
                raise MisconfigurationException(msg)
            first = replaced(inputs, Tensor, lambda tensor: tensor[:1] if tensor.shape[:1] == (count,) else tensor)
            self.products[sizes] = self._product(first)
        return self.products[sizes]

    def parts(self, product: MarginProduct) -> tuple[Tensor, Tensor]:
        """Return the rows of the last layer, and the bound of the layers before it, shape ().

        A collective call for sharded weights.
        """
        rows = layer_of(self._weights[product.last]).matrix()
        layers = {factor: layer_of(self._weights[factor.weight]) for factor in product.factors}
        normed = [factor for factor in product.factors if factor.gain is None]
        norms = dict(zip(normed, self.norms.of([self._weights[factor.weight] for factor in normed]), strict=True))
        gain = rows.new_full((), product.constant)
        for factor, layer in layers.items():
            if factor.gain is None:
                constant = value_at(layer, norms[factor])
            else:
                constant = factor.gain * layer.tensor.abs().amax()
            gain = gain * constant.to(gain) ** factor.calls
        return rows, gain

    def _product(self, inputs: Sequence[Any]) -> MarginProduct:
        title = type(self._target).__name__
        if not any(True for _ in found(inputs, Tensor)):
            msg = (
                f"MarginPenalty finds no tensor among the positional arguments of {title}.forward. Call it with"
                " positional arguments in `training_step`."
            )
            raise MisconfigurationException(msg)
        try:
            product = margin_product(self._target, inputs)
        except NoProductError as error:
            msg = (
                f"MarginPenalty needs a bound of the margins that is a product of the norms of layers, but for {title}"
                f" {error}. To certify this network, use SpectralConstraint or SpectralNormPenalty instead, or build it"
                " of linear layers, zero-padded convolutions, activations and pooling, with a linear layer at the end."
            )
            raise MisconfigurationException(msg) from error
        for name in (*(factor.weight for factor in product.factors), product.last):
            if name in self._computed:
                msg = (
                    f"MarginPenalty cannot follow the norm of {self._weights[name].plain_name!r}, which a"
                    " parametrization computes. Remove that parametrization (weight norm, torch's spectral norm)."
                )
                raise MisconfigurationException(msg)
        return product
