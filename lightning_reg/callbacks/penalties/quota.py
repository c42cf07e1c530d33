"""The strength with which a penalty makes a given share of the weights, or of their groups, zero in a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from lightning_reg.callbacks.penalties.proximal_step import with_step_sizes
from lightning_reg.functional.tensors.chunks import NumberOrTensor
from lightning_reg.functional.tensors.shards import shard_groups

Vanishing = Callable[[list[Tensor], list[NumberOrTensor]], list[Tensor]]

# Entries in a sample. The share among a million differs from the share among all by at most 0.002, at four standard
# deviations. A single layer has a quarter of that, and 0.004.
_SAMPLE = 1 << 20
_LAYER_SAMPLE = 1 << 18
# Distances between entries of a sample: primes, because a common divisor with a row's length would skip columns.
_STRIDES = (1, 11, 101, 1009, 10007, 100003)
_FLOAT_BITS = 31
_ROUNDING = 1 + 2.0**-20


@dataclass(frozen=True)
class Quota:
    """The wanted share of zero units.

    Args:
        share: Maps the number of optimizer steps so far to the share.
        each_layer: Whether each weight must have the share; otherwise all weights together.
        floor: The least share of units that is left in each weight.

    """

    share: Callable[[int], float]
    each_layer: bool = False
    floor: float = 0.0


@torch.no_grad()
def strength_for(  # noqa: PLR0913  # the goal, and the weights
    quota: Quota,
    tick: int,
    least: float,
    vanishing: Vanishing,
    optimizer: Optimizer,
    weights: Sequence[Tensor],
    dims: Mapping[Tensor, int] | None,
) -> Tensor:
    """Return the least strength with which the coming proximal step meets the quota.

    The same on all ranks; a collective call where weights are sharded.

    Args:
        quota: The wanted share; a share of 0 gives `least`.
        tick: Optimizer steps so far.
        least: The least strength, as far as the floor permits.
        vanishing: Maps weights and step sizes to the least strength at which each unit becomes zero.
        optimizer: The optimizer that has just taken a step.
        weights: The weights, at least one; the optimizer holds them.
        dims: The dimension along which the units of each weight lie; `None` if each entry is a unit.

    Returns:
        Shape (), or (weights,) if layers have separate strengths.

    """
    by_layer = quota.each_layer or quota.floor > 0
    sample = _Sample(weights, by_layer=by_layer)
    stride = 1 if dims is not None or by_layer else _stride(sum(weight.numel() for weight in weights), _SAMPLE)
    # Whole weights, whose ranks are known; only a sample of the results is kept.
    for parts, step_sizes in with_step_sizes(optimizer, weights, elementwise=False):
        for part, strengths in zip(parts, vanishing(parts, step_sizes), strict=True):
            own = stride if dims is not None or not by_layer else _stride(part.numel(), _LAYER_SAMPLE)
            sample.add(part, strengths.reshape(-1)[::own], None if dims is None else dims[part])
    totals, share = sample.totals(), quota.share(tick)
    wanted = (totals * share).round() if quota.each_layer else (totals.sum() * share).round()
    if not quota.floor:
        strengths = _as_strengths(sample.least(wanted), wanted > 0).clamp(min=least)
        return strengths if by_layer else strengths.squeeze()
    # The number of units left is rounded up, except for the rounding of floats.
    allowed = (totals * (1 - quota.floor) * _ROUNDING + 1e-6).floor()
    caps = torch.where(allowed > 0, sample.least(allowed).view(torch.float32) * _ROUNDING, 0.0)
    found = sample.least(wanted) if quota.each_layer else sample.least_within(wanted, allowed)
    return torch.minimum(_as_strengths(found, wanted > 0).clamp(min=least), caps)


def _stride(entries: int, sample: int) -> int:
    return next((stride for stride in _STRIDES if entries <= stride * sample), _STRIDES[-1])


def _as_strengths(bits: Tensor, is_wanted: Tensor) -> Tensor:
    # Rounding must not leave the last unit above the threshold. Infinity, where rates are 0, is out of reach.
    strengths = bits.view(torch.float32) * _ROUNDING
    return torch.where(is_wanted & strengths.isfinite(), strengths, 0.0)


class _Sample:
    """The strengths at which units vanish, by layer or together, as the bits of floats >= 0: these sort like integers.

    Args:
        weights: The weights.
        by_layer: Whether each weight counts separately.

    """

    def __init__(self, weights: Sequence[Tensor], *, by_layer: bool) -> None:
        self._positions = {weight: position if by_layer else 0 for position, weight in enumerate(weights)}
        self._layers = len(weights) if by_layer else 1
        self._device = weights[0].device
        self._parts: dict[tuple[ProcessGroup, ...], list[tuple[int, Tensor]]] = {}
        self._joined: dict[tuple[ProcessGroup, ...], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def add(self, weight: Tensor, strengths: Tensor, dim: int | None) -> None:
        """Add the strengths of one weight, whose units lie along a dimension, or are its entries."""
        ranks = shard_groups(weight, lambda sharded: dim in (None, sharded))
        # 0/0, for an entry that is 0 and does not move, counts as 0.
        bits = strengths.float().nan_to_num(0.0, torch.inf).view(torch.int32).to(self._device)
        self._parts.setdefault(ranks, []).append((self._positions[weight], bits))

    def totals(self) -> Tensor:
        """Return the number of units of each layer on all ranks, shape (layers,); call it after the last `add`."""
        for ranks, parts in self._parts.items():
            sizes = [bits.numel() for _, bits in parts]
            layers, lengths = (
                torch.tensor(values).to(self._device, non_blocking=True)
                for values in ([layer for layer, _ in parts], sizes)
            )
            owners = torch.repeat_interleave(layers, lengths, output_size=sum(sizes)) if self._layers > 1 else layers
            self._joined[ranks] = torch.cat([bits for _, bits in parts]), owners, layers, lengths.cumsum(0)
        most = torch.iinfo(torch.int32).max
        return self._below(torch.full((self._layers,), most, dtype=torch.int32, device=self._device))

    def least(self, wanted: Tensor) -> Tensor:
        """Return the least value for each layer such that `wanted` units are at or below it, shape (layers,)."""
        return self._search(self._layers, lambda trial: self._below(trial) >= wanted)

    def least_within(self, wanted: Tensor, allowed: Tensor) -> Tensor:
        """Return the least value such that `wanted` units are at or below it, with limits by layer, shape (1,)."""
        return self._search(
            1, lambda trial: torch.minimum(self._below(trial.expand(self._layers)), allowed).sum() >= wanted
        )

    def _search(self, size: int, is_enough: Callable[[Tensor], Tensor]) -> Tensor:
        found = torch.zeros(size, dtype=torch.int32, device=self._device)
        for bit in reversed(range(_FLOAT_BITS)):
            # Find the largest number with fewer than `wanted` units at or below it. The next one is the answer.
            trial = found + (1 << bit)
            found = torch.where(is_enough(trial), found, trial)
        return found

    def _below(self, limits: Tensor) -> Tensor:
        """Return the number of units of each layer below its limit, on all ranks."""
        counts = []
        for ranks, (bits, owners, layers, ends) in self._joined.items():
            if self._layers == 1:
                own = (bits < limits).sum().reshape(1)
            else:
                sums = torch.nn.functional.pad((bits < limits[owners]).cumsum(0), (1, 0))
                none = torch.zeros(self._layers, dtype=torch.long, device=self._device)
                own = none.index_add_(0, layers, sums[ends].diff(prepend=sums[:1]))
            for group in ranks:
                torch.distributed.all_reduce(own, group=group)
            counts.append(own)
        return counts[0] if len(counts) == 1 else torch.stack(counts).sum(0)
