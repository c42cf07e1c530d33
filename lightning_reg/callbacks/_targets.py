"""The weights a callback acts on, as the optimizers hold them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.selection import Selection


class Targets:
    """Chosen weights that are trained at the moment: in an optimizer, and not frozen.

    Both can change during training, as with `BaseFinetuning`.
    """

    def __init__(self, selection: Selection) -> None:
        self._chosen = frozenset(weight.parameter for weight in selection.chosen)
        self._key: list[tuple[int, int]] = []
        self._members: list[Tensor] = []

    def of(self, optimizers: Sequence[Optimizer]) -> list[Tensor]:
        """Return the targets among the parameters of `optimizers`."""
        # Finding the members touches every parameter, so it is done again only when a parameter group has grown.
        groups = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
        key = [(id(parameters), len(parameters)) for parameters in groups]
        if key != self._key:
            self._key = key
            self._members = [
                parameter for parameters in groups for parameter in parameters if parameter in self._chosen
            ]
        return [parameter for parameter in self._members if parameter.requires_grad]

    def settings(self, optimizers: Sequence[Optimizer], name: str) -> list[float]:
        """Return the value of one setting in every parameter group that holds a target; 0 where it has none."""
        return [
            float(group.get(name) or 0)
            for optimizer in optimizers
            for group in optimizer.param_groups
            if not self._chosen.isdisjoint(group["params"])
        ]


def gradients(weights: list[Tensor]) -> list[Tensor]:
    """Return the dense gradients of `weights`, made where backward left none.

    A weight that no loss reached has no gradient, yet its penalty has one.
    """
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        elif weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()
    return [weight.grad for weight in weights if weight.grad is not None]
