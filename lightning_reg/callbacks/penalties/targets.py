"""The weights that a callback acts on, as the optimizers hold them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer.held_weights import HeldWeights
from lightning_reg.functional.tensors.shards import dense_gradient
from lightning_reg.selection.weights import Selection


class Targets:
    """Chosen weights that are currently trained: in an optimizer, and not frozen.

    Both can change during training, as with `BaseFinetuning`.
    """

    def __init__(self, selection: Selection, held: HeldWeights) -> None:
        self.held = held
        self._chosen = [weight.parameter for weight in selection.chosen]
        self._found: dict[tuple[int, ...], tuple[frozenset[Tensor], list[Tensor]]] = {}

    def of(self, optimizers: Sequence[Optimizer]) -> list[Tensor]:
        """Return the targets among the parameters of `optimizers`, once each, in the order of the model."""
        members, key = self.held.of(optimizers), tuple(map(id, optimizers))
        before, targets = self._found.get(key, (None, []))
        if members is not before:
            targets = [parameter for parameter in self._chosen if parameter in members]
            self._found[key] = (members, targets)
        return [parameter for parameter in targets if parameter.requires_grad]

    def weight_decays(self, optimizers: Sequence[Optimizer]) -> list[float]:
        """Return the `weight_decay` of every parameter group that holds a target; 0 where it has none."""
        return [
            float(group.get("weight_decay") or 0)
            for optimizer in optimizers
            for group in optimizer.param_groups
            if not set(self._chosen).isdisjoint(group["params"])
        ]


def gradients(weights: list[Tensor]) -> list[Tensor]:
    """Return the dense gradients of `weights`, with new zero gradients where backward left none.

    A weight that no loss reached has no gradient, yet its penalty has one.
    """
    grads = []
    for weight in weights:
        grad = dense_gradient(weight)
        grads.append(torch.zeros_like(weight) if grad is None else grad)
        if grads[-1] is not weight.grad:
            weight.grad = grads[-1]
    return grads


def add_scaled(
    add_gradient: Callable[[list[Tensor], list[Tensor], float], None],
    weights: list[Tensor],
    factor: float,
    scale: Tensor | None,
) -> None:
    """Add `factor` times a gradient to the gradients of `weights`, which still contain the factor `scale` if given."""
    if scale is None:
        add_gradient(gradients(weights), weights, factor)
        return
    scaled = [torch.zeros_like(weight) for weight in weights]
    add_gradient(scaled, weights, factor)
    torch._foreach_mul_(scaled, scale)
    torch._foreach_add_(gradients(weights), scaled)
