"""Penalties on the matrix of each layer: its kernel with one dimension first and the others flattened."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.penalties.base import Penalty
from lightning_reg.callbacks.penalties.run import Run
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer
from lightning_reg.callbacks.trainer.refusals import refuse_computed
from lightning_reg.functional.penalties.counts import check_dim
from lightning_reg.functional.spectral.matrix_terms import add_gradient_of_terms_, sum_of_terms

_MATRIX_NDIM = 2


class MatrixPenalty(Penalty):
    """A sum over layers of a function of each layer's matrix. Sharded weights are gathered one layer at a time.

    Stacked experts (experts x out x in) are one matrix each.
    """

    dim: int = 0
    """The dimension along which the rows lie: 0 for output units, 1 for input units, whatever the layer's layout."""

    @abstractmethod
    def term(self, matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return the value for one matrix, shape (), and a function that returns its gradient.

        Args:
            matrix: The weight as a matrix, or a stack of matrices, in float32 at least.
            dtype: The type of the weight.

        """

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return sum_of_terms(self.term, weights, self.dims_of(weights))

    @override
    def value(self, weights: list[Tensor]) -> Tensor:
        return self.penalty(weights)

    @override
    def add_gradient(self, grads: list[Tensor], weights: list[Tensor], factor: float) -> None:
        add_gradient_of_terms_(self.term, grads, weights, factor, self.dims_of(weights))

    def dims_of(self, weights: Sequence[Tensor]) -> list[int | None]:
        """Return the dimension of each weight along which rows lie, None for a stack; known only during a fit."""
        run = self._run
        if run is None:
            return [self.dim] * len(weights)
        return [None if weight in run.stacks else run.unit_dims[weight] for weight in weights]

    @override
    def make_run(self, trainer: Trainer, pl_module: LightningModule) -> Run:
        run = super().make_run(trainer, pl_module)
        for weight in run.selection.chosen:
            if len(weight.shape) < _MATRIX_NDIM:
                msg = (
                    f"{type(self).__name__} needs weights with at least two dimensions, but"
                    f" {weight.name!r} has shape {tuple(weight.shape)}. Leave it out:"
                    f" `select=Select(exclude={weight.name!r})`."
                )
                raise ValueError(msg)
        check_dim((weight.parameter for weight in run.selection.chosen), self.dim)
        held = run.targets.held.of(trainer.optimizers)
        refuse_computed([weight for weight in run.selection.chosen if weight.parameter in held], type(self).__name__)
        run.stacks = frozenset(weight.parameter for weight in run.selection.chosen if weight.is_stack)
        run.unit_dims = {weight.parameter: weight.dims[self.dim] for weight in run.selection.chosen}
        return run
