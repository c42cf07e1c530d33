"""The norms of weights in one optimizer step, computed once and continued from the last step."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_reg.callbacks.spectral.weights import WeightNorms, known_at_once
from lightning_reg.functional.spectral.followed.norms import FollowedNorm
from lightning_reg.selection import Weight

# If many singular values are nearly as large, a norm may be accurate before its gradient is: the error of the vectors
# is about the root of the gain of the last round. Then more rounds follow.
_SETTLED, _MORE_ROUNDS = 1e-6, 12


class StepNorms:
    """The norms of weights with their gradients in factors, until the optimizer steps.

    Args:
        as_matrices: Whether convolutions count as matrices.

    """

    def __init__(self, *, as_matrices: bool = False) -> None:
        self._as_matrices = as_matrices
        self._norms = WeightNorms(as_matrices=as_matrices)
        self._found: dict[Tensor, FollowedNorm] = {}

    @torch.no_grad()
    def of(self, weights: Sequence[Weight]) -> list[FollowedNorm]:
        """Return the norm of each weight. A collective call for sharded weights."""
        fresh = [weight for weight in weights if weight.parameter not in self._found]
        self._advance(fresh)
        self._advance([weight for weight in fresh if _is_unsettled(self._found[weight.parameter])], _MORE_ROUNDS)
        return [self._found[weight.parameter] for weight in weights]

    def forget(self, parameters: Iterable[Tensor]) -> None:
        """Forget the norms of weights that are about to change."""
        for parameter in parameters:
            self._found.pop(parameter, None)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state for `load`."""
        return self._norms.followed.state()

    def load(self, state: Mapping[str, Mapping[str, Tensor]], weights: Iterable[Weight]) -> None:
        """Continue with the norms in `state`, and start anew with the other `weights`."""
        self._norms = WeightNorms(as_matrices=self._as_matrices)
        self._found = {}
        names = {weight.name for weight in weights}
        self._norms.followed.load({name: known for name, known in state.items() if name in names})

    def _advance(self, weights: Sequence[Weight], *rounds: int) -> None:
        found = self._norms.advance(weights, *rounds)
        self._found.update(zip((weight.parameter for weight in weights), found, strict=True))


def _is_unsettled(norm: FollowedNorm) -> bool:
    """Tell whether more rounds would turn the vectors of a matrix; never on a GPU, where this would wait."""
    is_matrix = norm.right.shape[-2] == 1
    return is_matrix and any(known_at_once(norm.gain > _SETTLED))
