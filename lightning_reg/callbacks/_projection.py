"""Weights that have left the ball of norm c go back into it, right after the step that has taken them out."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks._layer_weights import WeightNorms, is_matrix, layer_of, local, mask_of
from lightning_reg.functional._shards import local_slice
from lightning_reg.functional._singular import clip_singular_values, without_autocast
from lightning_reg.selection import Weight

# The estimate is from below. Followed from step to step it is within a few per cent, unless a step moves a weight as
# far as it is long.
_ITERATIONS = 10
_MARGIN = 0.1
# Where an exact norm or a certified bound costs little more than an estimate, none is trusted: of matrices with so
# short a side, of convolutions of so few channels. Elsewhere not for longer than so many steps.
_SHORT_SIDE = 64
_FEW_CHANNELS = 16
_TRUSTED_STEPS = 64
# Beyond so many times the bound, rounding in float32 would be seen in what is left.
_FAR = 10


class Projection:
    """Projects weights onto norms of at most a bound.

    Args:
        norm_bound: c, the largest norm.
        clips: Whether matrices have their singular values clipped; else they are rescaled, as convolutions are.

    """

    def __init__(self, norm_bound: float, *, clips: bool) -> None:
        self._bound, self._clips = norm_bound, clips
        self._norms = WeightNorms()
        self._weights: dict[Tensor, Weight] = {}
        self._ages: dict[str, int] = {}
        """Steps since the exact norm of a weight was last computed."""

    @torch.no_grad()
    def start(self, weights: Iterable[Weight], saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Project `weights`; those among `saved` are inside already."""
        for weight in weights:
            self._weights[weight.parameter] = weight
            known = saved.get(weight.name)
            if known is None:
                self._project(weight)
            else:
                self._ages[weight.name] = int(known["age"])
                if "v" in known:
                    self._norms.vectors[weight.name] = known["v"].to(weight.parameter.device)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what decides on the next exact norms, on the CPU."""
        vectors = self._norms.vectors
        return {
            weight.name: {"age": torch.tensor(self._ages[weight.name])}
            | ({"v": vectors[weight.name].cpu().clone()} if weight.name in vectors else {})
            for weight in self._weights.values()
        }

    def before_step(self, optimizer: Optimizer) -> None:
        """Do nothing: gradients are as they are."""

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Project what `optimizer` has taken out of the ball; waits for the device."""
        held = (tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.grad is not None)
        weights = [self._weights[tensor] for tensor in held if tensor in self._weights]
        small = [weight for weight in weights if _is_small(weight)]
        for weight in [*small, *self._doubtful([weight for weight in weights if not _is_small(weight)])]:
            self._project(weight)

    def stop(self) -> None:
        """Do nothing: the weights are in the ball after each step."""

    def _doubtful(self, weights: Sequence[Weight]) -> list[Weight]:
        """Return those that may be outside, by their estimates."""
        for weight in weights:
            self._ages[weight.name] += 1
        estimates = [pair.sigma for pair in self._norms.pairs(weights, _ITERATIONS)]
        if not estimates:
            return []
        sure = torch.stack([estimate.to(estimates[0].device) for estimate in estimates]) <= self._bound * (1 - _MARGIN)
        return [
            weight
            for weight, is_sure in zip(weights, sure.tolist(), strict=True)
            if not is_sure or self._ages[weight.name] >= _TRUSTED_STEPS
        ]

    def _project(self, weight: Weight) -> None:
        """Bring a weight inside, by its exact norm or the certified bound of it; NaN is left as it is."""
        self._ages[weight.name] = 0
        layer, values = layer_of(weight), local(weight)
        with without_autocast(values.device):
            norm = layer.norm_bound()
            excess = float(norm) / self._bound
            if not excess > 1:
                return
            # Rounding may lengthen.
            bound = self._bound * (1 - torch.finfo(values.dtype).eps)
            if self._clips and is_matrix(weight) and mask_of(weight) is None:
                clipped = clip_singular_values(layer.matrix(), bound, is_far=excess > _FAR)
                values.copy_(local_slice(clipped.view(weight.shape), weight.parameter))
            else:
                values.copy_(values * (bound / norm))


def _is_small(weight: Weight) -> bool:
    if is_matrix(weight):
        return min(weight.shape[0], weight.shape[1:].numel()) <= _SHORT_SIDE
    return min(weight.shape[:2]) <= _FEW_CHANNELS
