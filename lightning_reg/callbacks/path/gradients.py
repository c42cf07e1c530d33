"""The mean gradient of the loss over an epoch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_reg.functional.tensors.shards import dense_gradient, has_dtensors, spread_like, whole


class MeanGradient:
    """Average the gradients of weights over optimizer steps; a step counts by its share of a full step."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}
        self._shares: dict[Tensor, Tensor | float] = {}

    def clear(self) -> None:
        """Forget all gradients."""
        self._sums, self._shares = {}, {}

    @torch.no_grad()
    def add(self, weights: Sequence[Tensor], share: float, scale: Tensor | None, *, may_skip: bool) -> None:
        """Add the gradients of one step.

        Args:
            weights: The weights of one optimizer.
            share: The step's share of a full accumulation window.
            scale: The fp16 loss scale, if the gradients still contain it.
            may_skip: Whether the optimizer skips a step with infinite gradients; such a step is not counted.

        """
        found = {weight: dense_gradient(weight) for weight in weights}
        grads = {
            weight: grad.to(torch.promote_types(grad.dtype, torch.float32))
            for weight, grad in found.items()
            if grad is not None
        }
        counts: Tensor | float = share
        if may_skip and grads:
            parts = [grad.to_local() if has_dtensors([grad]) else grad for grad in grads.values()]  # type: ignore[attr-defined]
            finite = torch.stack([part.isfinite().all() for part in parts]).all()
            grads = {weight: torch.where(finite, grad, 0.0) for weight, grad in grads.items()}
            counts = share * finite
        for weight, grad in grads.items():
            grad = grad if scale is None else grad / scale
            self._sums[weight] = self._sums[weight].add_(grad) if weight in self._sums else grad.clone()
        # Count the step for weights without a gradient, too: their gradient is 0.
        for weight in weights:
            self._shares[weight] = self._shares.get(weight, 0.0) + counts

    def of(self, weight: Tensor) -> Tensor:
        """Return a weight's mean gradient, per full step; zero if it never had a gradient."""
        return self._sums[weight] / self._shares[weight] if weight in self._sums else torch.zeros_like(weight)

    def __contains__(self, weight: Tensor) -> bool:
        """Tell whether the weight ever had a gradient; optimizers leave others alone."""
        return weight in self._sums

    @property
    def is_empty(self) -> bool:
        """Whether no step had a gradient."""
        return not self._sums

    def state(self, names: dict[Tensor, str]) -> dict[str, object]:
        """Return the sums for a checkpoint; a collective call if they are sharded."""
        sums = {names[weight]: whole(total).to("cpu", copy=True) for weight, total in self._sums.items()}
        return {"sums": sums, "shares": {names[weight]: float(share) for weight, share in self._shares.items()}}

    def load(self, state: dict[str, dict[str, Any]], weights: dict[str, Tensor]) -> None:
        """Load the sums of a checkpoint."""
        self._sums = {
            weights[name]: spread_like(total.to(weights[name].device, copy=True), weights[name])
            for name, total in state["sums"].items()
            if name in weights
        }
        self._shares = {weights[name]: share for name, share in state["shares"].items() if name in weights}
