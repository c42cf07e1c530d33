"""The weights a callback acts on, as the optimizers hold them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.functional._shards import sum_over_shards, whole
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
    grads = []
    for weight in weights:
        grad = weight.grad
        if grad is None or grad.is_sparse:
            grad = weight.grad = torch.zeros_like(weight) if grad is None else grad.to_dense()
        grads.append(grad)
    return grads


def add_scaled(
    add_gradient: Callable[[list[Tensor], list[Tensor], float], None],
    weights: list[Tensor],
    factor: float,
    scale: Tensor | None,
) -> None:
    """Add `factor` times a gradient to those of `weights`, which still carry the factor `scale` (`None`: do not)."""
    if scale is None:
        add_gradient(gradients(weights), weights, factor)
        return
    scaled = [torch.zeros_like(weight) for weight in weights]
    add_gradient(scaled, weights, factor)
    torch._foreach_mul_(scaled, scale)
    torch._foreach_add_(gradients(weights), scaled)


def evaluate(penalty: Callable[[list[Tensor]], Tensor], weights: list[Tensor], *, elementwise: bool) -> Tensor:
    """Return `penalty` of all `weights`, shape (), whether it works on shards (`elementwise`) or on whole weights."""

    def scalar(parts: list[Tensor]) -> Tensor:
        value = penalty(parts)
        if not isinstance(value, Tensor) or value.numel() != 1:  # type: ignore[redundant-expr]  # users may be untyped
            msg = f"`{penalty.__qualname__}` must return a tensor of one entry, got {value!r}."
            raise TypeError(msg)
        return value.squeeze()

    return sum_over_shards(scalar, weights) if elementwise else scalar([whole(weight) for weight in weights])
