"""The formulas of a penalty on weights, without a trainer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_reg.callbacks.trainer.packages import rank_zero_warn
from lightning_reg.functional.tensors.shards import local_parts, sum_over_shards, whole

Memories = Sequence[Tensor | None]


class Formula(ABC):
    """The value of a term of the objective, its gradient and its proximal operator."""

    elementwise: ClassVar[bool] = False
    """Whether `penalty` is a sum over entries, so that each rank computes its part. If not, FSDP2 gathers weights, and
    FSDP1 is refused."""

    keeps_zeros: ClassVar[bool] = False
    """Whether `proximal` keeps zeros and signs, so that constraints may have the same weights."""

    has_one_step_size: ClassVar[bool] = False
    """Whether `proximal` needs one factor for all entries of a weight: optimizers such as Adam are then refused."""

    mixes_entries: ClassVar[bool] = False
    """Whether `proximal` mixes entries, as by singular vectors. After L1's, it is not the operator of the sum."""

    @abstractmethod
    def penalty(self, weights: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        r"""Return :math:`\Omega(w)`, the term at strength 1.

        If the term is not proportional to the strength, return it divided by `self.current_strength`. The result is
        then multiplied by it.

        Define it as `penalty(self, weights)`; with `remember` as `penalty(self, weights, memory)`.

        Args:
            weights: The chosen weights that are trained, in the order of the model, at least one; this rank's parts of
                them if `elementwise` under FSDP. With several optimizers, the weights of one: their terms are added.
            *args: If the class has `remember`, the memory: the result of `remember` for each weight, or `None`; a list
                in the order of `weights`, with parts of the same entries.
            **kwargs: None.

        Returns:
            A tensor of one entry, differentiable in the weights.

        """

    def remember(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors that the term needs of the initial weights; override it for a penalty with a memory.

        Called once, before the first step. The result is copied, moved to the device of the weight, saved in
        checkpoints and restored, so a resumed run has the memory of the run that it continues. It is sharded like the
        weight if it has its shape (further dimensions may come in front). Each `fit` that is not resumed starts anew.

        Args:
            weights: All chosen weights by name, frozen ones too, without gradient; under FSDP2 DTensors if
                `elementwise`, else whole weights, each gathered when it is read.

        Returns:
            Tensors by the same names, not necessarily all; copies are not needed.

        """
        return {}

    @property
    def remembers(self) -> bool:
        """Whether the class defines `remember`: `penalty` and `proximal` then get a further argument."""
        return type(self).remember is not Formula.remember

    @property
    def offloads(self) -> bool:
        """Whether the memory stays on the CPU, and the formulas move the parts they need to the weights' device."""
        return False

    def recalled(self, weights: Sequence[Tensor]) -> tuple[()] | tuple[Memories]:
        """Return further arguments of `penalty` and `proximal`: none, or the memory of `weights`."""
        return ()

    def value(self, weights: list[Tensor]) -> Tensor:
        """Return `penalty` of weights as the optimizer holds them, sharded or not, shape ()."""
        return evaluate(self.penalty, weights, *self.recalled(weights), elementwise=self.elementwise)

    def proximal(self, weights: list[Tensor], factors: list[float | Tensor], *args: Any, **kwargs: Any) -> None:
        r"""Replace each weight, in place, by :math:`\arg\min_u \sum_i (u_i - w_i)^2 / (2 f_i) + \Omega(u)`.

        Override it to allow `mode="proximal"`.

        Args:
            weights: Weights of one optimizer, without gradient; flat parts of them if `elementwise`.
            factors: :math:`f \ge 0` for each weight: a number, a tensor of one entry, or one of the weight's shape
                (of its local part for a `DTensor`).
            *args: The memory, as `penalty` gets it, if the class has `remember`.
            **kwargs: None.

        """
        raise NotImplementedError

    def proximal_of(self, weights: list[Tensor]) -> Callable[..., None]:
        """Return `proximal` for copies of `weights`. A copy does not show the settings of its weight."""
        return self.proximal

    def vanishing_strengths(self, weights: list[Tensor], step_sizes: Sequence[float | Tensor]) -> list[Tensor]:
        """Return for each weight the least strength at which `proximal` makes its entries, or groups, zero.

        Override it, beside `proximal`, to allow `TargetSparsity`, and `RegularizationPath` with a number of strengths.

        Args:
            weights: Weights of one optimizer, without gradient; DTensors if they are sharded.
            step_sizes: The step size of each weight: a number, a tensor of one entry, or one of the shape of its local
                part.

        Returns:
            A tensor for each weight, of any shape, with one entry for each unit of this rank.

        """
        raise NotImplementedError

    @property
    def has_vanishing_strengths(self) -> bool:
        """Whether the class defines `vanishing_strengths`, and they are finite."""
        return type(self).vanishing_strengths is not Formula.vanishing_strengths

    def residual(self, weights: list[Tensor], grads: list[Tensor]) -> Tensor | None:
        """Return the largest distance of any `-grads` from the subdifferential of `penalty`; None if unknown.

        Override it, beside `proximal`, to log `reg/optimality/<name>`: 0 at a minimum of the objective at strength 1.

        Args:
            weights: Weights of one optimizer, without gradient; DTensors if they are sharded.
            grads: Their dense gradients, of the data loss over the strength.

        Returns:
            Shape (), over this rank's parts of the weights.

        """
        return None

    @property
    def unit_dim(self) -> int | None:
        """The dimension of units that become zero together, as `register_layer` counts; `None` for entries."""
        return None

    @property
    def exact_in_any_company(self) -> bool:
        """Whether this operator, applied before one other, gives the operator of the sum: then both may share weights.

        Here only the 1-norm does this, before all operators except those with `mixes_entries`.
        """
        return False

    @property
    def overlaps_weight_decay(self) -> bool:
        """Whether the term shrinks weights like an optimizer's `weight_decay`, so that both are probably a mistake."""
        return False

    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        """Add `factor` times the gradient of `penalty` to `grads`, in place.

        This default uses autograd; a subclass with a known gradient saves the graph and the copy.
        """

        def value(leaves: list[Tensor]) -> Tensor:
            return evaluate(self.penalty, leaves, *self.recalled(weights), elementwise=self.elementwise)

        add_autograd_gradient(value, grads, weights, factor)


def _has_hooks(weight: Tensor) -> bool:
    return bool(weight._backward_hooks)  # noqa: SLF001  # torch has no other way to ask


def add_autograd_gradient(
    penalty: Callable[[list[Tensor]], Tensor], grads: list[Tensor], weights: list[Tensor], factor: float
) -> None:
    """Add `factor` times the gradient of `penalty`, as autograd finds it, to `grads` in place."""
    with torch.enable_grad():
        # Pass the weights themselves, so that a user's penalty can recognize them; copies if hooks wait for a gradient.
        leaves = [
            weight if weight.requires_grad and not _has_hooks(weight) else weight.detach().requires_grad_()
            for weight in weights
        ]
        value = penalty(leaves)
    if value.requires_grad:
        found = torch.autograd.grad(value, leaves, materialize_grads=True)
        torch._foreach_add_(local_parts(grads), local_parts(list(found)), alpha=factor)


def evaluate(penalty: Callable[..., Tensor], weights: list[Tensor], *memory: Memories, elementwise: bool) -> Tensor:
    """Return `penalty` of all `weights`, shape (), whether it works on shards (`elementwise`) or on whole weights."""

    def scalar(parts: list[Tensor], *recalled: list[Tensor | None]) -> Tensor:
        value = penalty(parts, *recalled)
        if not isinstance(value, Tensor) or value.numel() != 1:  # type: ignore[redundant-expr]  # users may be untyped
            msg = f"`{penalty.__qualname__}` must return a tensor of one entry, got {value!r}."
            raise TypeError(msg)
        if torch.is_grad_enabled() and not value.requires_grad:
            rank_zero_warn(
                f"`{penalty.__qualname__}` returned a value without gradient: it trains nothing."
                " Compute it from the weights with differentiable operations, no `.data`, `.item()` or `.detach()`."
            )
        return value.squeeze()

    if elementwise:
        return sum_over_shards(scalar, weights, *memory)
    recalled = ([None if tensor is None else whole(tensor) for tensor in some] for some in memory)
    return scalar([whole(weight) for weight in weights], *recalled)
