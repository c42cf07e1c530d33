"""What a penalty is: formulas on weights, with no trainer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lightning_reg.callbacks.trainer.packages import rank_zero_warn
from lightning_reg.functional.tensors.shards import local_parts, sum_over_shards, whole


class Formula(ABC):
    """The value of a term of the objective, its gradient and its proximal operator."""

    elementwise: ClassVar[bool] = False
    """Whether `penalty` is a sum over entries, so that each rank can do its own; FSDP2 else gathers, FSDP1 refuses."""

    keeps_zeros: ClassVar[bool] = False
    """Whether `proximal` keeps zeros and signs, so that constraints may have the same weights."""

    @abstractmethod
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        r"""Return :math:`\Omega(w)`, the term at strength 1.

        Args:
            weights: The chosen weights that are trained, in the order of the model, at least one; this rank's parts of
                them if `elementwise` under FSDP. With several optimizers, those of one: the term is a sum over them.

        Returns:
            A tensor of one entry, differentiable in the weights.

        """

    def value(self, weights: list[Tensor]) -> Tensor:
        """Return `penalty` of weights as the optimizer holds them, sharded or not, shape ()."""
        return evaluate(self.penalty, weights, elementwise=self.elementwise)

    def proximal(self, weights: list[Tensor], factors: list[float | Tensor]) -> None:
        r"""Replace each weight, in place, by :math:`\arg\min_u \sum_i (u_i - w_i)^2 / (2 f_i) + \Omega(u)`.

        Override it to allow `mode="proximal"`.

        Args:
            weights: Weights of one optimizer, without gradient; flat parts of them if `elementwise`.
            factors: :math:`f \ge 0` for each weight: a number, a tensor of one entry, or one of the weight's shape
                (that of its local part for a `DTensor`).

        """
        raise NotImplementedError

    def proximal_of(self, weights: list[Tensor]) -> Callable[[list[Tensor], list[float | Tensor]], None]:
        """Return `proximal` for copies of `weights`: what it has to know of weights cannot be told from copies."""
        return self.proximal

    def vanishing_strengths(self, weights: list[Tensor], step_sizes: Sequence[float | Tensor]) -> list[Tensor]:
        """Return for each weight the least strength at which `proximal` makes its entries, or groups, zero.

        Override it, beside `proximal`, to allow `TargetSparsity`.

        Args:
            weights: Weights of one optimizer, without gradient; `DTensor`s if they are sharded.
            step_sizes: That of each weight: a number, a tensor of one entry, or one of the shape of its local part.

        Returns:
            For each weight a tensor with one entry for each unit that this rank has, of any shape.

        """
        raise NotImplementedError

    @property
    def unit_dim(self) -> int | None:
        """The dimension along which what becomes zero together lies, as `register_layer` counts; `None` for entries."""
        return None

    @property
    def exact_in_any_company(self) -> bool:
        """Whether this operator, applied before one other, gives the operator of the sum: then both may share weights.

        True of the 1-norm alone among those here.
        """
        return False

    @property
    def overlaps_weight_decay(self) -> bool:
        """Whether the term shrinks weights as an optimizer's `weight_decay` does, so that both are hardly meant."""
        return False

    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        """Add `factor` times the gradient of `penalty` to `grads`, in place.

        This one asks autograd; a subclass that knows its gradient can do without the graph and the copy.
        """
        add_autograd_gradient(partial(evaluate, self.penalty, elementwise=self.elementwise), grads, weights, factor)


def add_autograd_gradient(
    penalty: Callable[[list[Tensor]], Tensor], grads: list[Tensor], weights: list[Tensor], factor: float
) -> None:
    """Add `factor` times the gradient of `penalty`, as autograd finds it, to `grads` in place."""
    with torch.enable_grad():
        leaves = [weight.detach().requires_grad_() for weight in weights]
        value = penalty(leaves)
    if value.requires_grad:
        found = torch.autograd.grad(value, leaves, materialize_grads=True)
        torch._foreach_add_(local_parts(grads), local_parts(list(found)), alpha=factor)


def evaluate(penalty: Callable[[list[Tensor]], Tensor], weights: list[Tensor], *, elementwise: bool) -> Tensor:
    """Return `penalty` of all `weights`, shape (), whether it works on shards (`elementwise`) or on whole weights."""

    def scalar(parts: list[Tensor]) -> Tensor:
        value = penalty(parts)
        if not isinstance(value, Tensor) or value.numel() != 1:  # type: ignore[redundant-expr]  # users may be untyped
            msg = f"`{penalty.__qualname__}` must return a tensor of one entry, got {value!r}."
            raise TypeError(msg)
        if torch.is_grad_enabled() and not value.requires_grad:
            rank_zero_warn(
                f"`{penalty.__qualname__}` returned a value without gradient: it trains nothing."
                " Compute it from the weights with differentiable operations, no `.data`, `.item()` or `.detach()`."
            )
        return value.squeeze()

    return sum_over_shards(scalar, weights) if elementwise else scalar([whole(weight) for weight in weights])
