"""The bound of a classifier's margins in a training step, differentiable in its weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.callbacks.spectral.step_norms import StepNorms
from lightning_reg.callbacks.spectral.weights import layer_of
from lightning_reg.callbacks.trainer.packages import MisconfigurationException
from lightning_reg.functional.lipschitz.nested import found, kind_of, replaced
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
        self._buffers: list[tuple[Tensor, int, Tensor]] = []
        """Each buffer of the target with its version and a copy."""
        self.norms = StepNorms()
        self.is_sharded = has_dtensors(weight.parameter for weight in weights.values())
        """Whether ranks have parts of weights."""

    def at(self, inputs: Sequence[Any], named: Collection[str], count: int) -> MarginProduct:
        """Return the product for inputs of these sizes; found once, and then known until a buffer changes.

        Args:
            inputs: The positional arguments of the classifier.
            named: The names of its keyword arguments, which the walk cannot pass on.
            count: The number of samples in them.

        """
        if named:
            msg = (
                f"MarginPenalty finds {', '.join(named)} not among the positional arguments of"
                f" {type(self._target).__name__}.forward. Call it with positional arguments only in `training_step`."
            )
            raise MisconfigurationException(msg)
        sizes = kind_of(inputs)
        are_new = self._are_buffers_new()
        if are_new or sizes not in self.products:
            if self.products and self.is_sharded:
                # Other ranks may know the product, and would not take part in collecting the weights.
                only = "buffers that do not change" if are_new else "inputs of one size"
                msg = f"MarginPenalty with sharded weights takes {only} only. Use DDP, or {only}."
                raise MisconfigurationException(msg)
            if are_new:
                self.products.clear()
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

    def _are_buffers_new(self) -> bool:
        """Return whether a buffer has changed since the last call, such as a running scale of the inputs."""
        buffers = [buffer for buffer in self._target.buffers() if buffer.is_floating_point()]
        # Inference tensors have no version.
        versions = [-1 if buffer.is_inference() else buffer._version for buffer in buffers]  # noqa: SLF001  # has no public name
        known = [(id(buffer), version) for buffer, version, _ in self._buffers]
        if known == [(id(buffer), version) for buffer, version in zip(buffers, versions, strict=True)]:
            return False
        # DDP writes the same values again. Only then this waits for the device.
        copies = [copy for _, _, copy in self._buffers]
        is_same = len(copies) == len(buffers) and all(map(torch.equal, buffers, copies))
        new = copies if is_same else [buffer.detach().clone() for buffer in buffers]
        self._buffers = list(zip(buffers, versions, new, strict=True))
        return not is_same

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
