"""Proximal steps that rounding undoes: a weight of 0.5 in bfloat16 has no neighbour nearer than 0.002."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.penalties.proximal_step import Proximal, Recall, with_step_sizes
from lightning_reg.callbacks.trainer.packages import rank_zero_warn
from lightning_reg.functional.tensors.shards import local_parts

# Share of the entries that should move. The largest ones never do, because a step is a small share of them.
_TOLERATED = 0.5


class RoundedAway:
    """Counts, once an epoch, the entries that a proximal step does not move because their dtype is too coarse."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._dtype = torch.float32
        self._has_warned = False

    @torch.no_grad()
    def measure(
        self,
        proximal_of: Callable[[list[Tensor]], Proximal],
        optimizer: Optimizer,
        weights: Sequence[Tensor],
        strength: float,
        recall: Recall,
        *,
        elementwise: bool,
    ) -> None:
        """Count the entries that a proximal step moves, in the first step of an epoch; nothing waits for the device.

        Args:
            proximal_of: Maps weights to a function that applies the operator to copies, in place.
            optimizer: The optimizer that has just taken a step.
            weights: The weights; the optimizer holds them.
            strength: Factor on the penalty.
            recall: Maps weights to further arguments of that function.
            elementwise: Whether that function works on flat parts of weights.

        """
        coarse = [weight for weight in weights if torch.finfo(weight.dtype).bits < torch.finfo(torch.float32).bits]
        if self._has_warned or self._counts is not None or not coarse:
            return
        self._dtype = coarse[0].dtype
        self._counts = torch.zeros(2, dtype=torch.long, device=coarse[0].device)
        for parts, factors, *memory in with_step_sizes(optimizer, coarse, strength, recall, elementwise=elementwise):
            exact = [part.float() for part in parts]
            sizes = [factor.float() if isinstance(factor, Tensor) else factor for factor in factors]
            proximal_of(parts)(exact, sizes, *memory)
            for before, after in zip(local_parts(parts), local_parts(exact), strict=True):
                moves = after != before
                stays = moves & (after.to(before.dtype) == before)
                self._counts += torch.stack([stays.sum(), moves.sum()]).to(self._counts.device)

    def warn(self, name: str) -> None:
        """Warn, once, if rounding undoes most of the steps; waits for the device."""
        if self._counts is None:
            return
        stay, move = self._counts.tolist()
        self._counts = None
        if stay > _TOLERATED * move:
            self._has_warned = True
            rank_zero_warn(
                f'{name} with mode="proximal" moves {move} entries by so little that rounding to'
                f" {str(self._dtype).removeprefix('torch.')} puts {stay} of them back: they will never become zero."
                " Keep weights in float32 (precision='bf16-mixed', '16-mixed' or '32-true'), or raise the strength or"
                " the learning rate."
            )
