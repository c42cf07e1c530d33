"""How strong a penalty must be in this step to make a given share of the weights, or of their groups, zero."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from lightning_reg.callbacks.penalties.proximal_step import with_step_sizes
from lightning_reg.functional.tensors.chunks import NumberOrTensor
from lightning_reg.functional.tensors.shards import shard_groups

Vanishing = Callable[[list[Tensor], list[NumberOrTensor]], list[Tensor]]

# Entries that are looked at. The share among a million is that among all to 0.002, with four standard deviations.
_SAMPLE = 1 << 20
# Distances between entries of a sample: primes, for a common divisor with a row's length would see some columns only.
_STRIDES = (1, 11, 101, 1009, 10007, 100003)
_FLOAT_BITS = 31
_ROUNDING = 1 + 2.0**-20


@torch.no_grad()
def strength_for(
    share: float,
    vanishing: Vanishing,
    optimizer: Optimizer,
    weights: Sequence[Tensor],
    dims: Mapping[Tensor, int] | None,
) -> Tensor:
    """Return the least strength with which the coming proximal step leaves `share` of all units zero, shape ().

    The same on all ranks; a collective call where weights are sharded.

    Args:
        share: In [0, 1); 0 gives 0.
        vanishing: From weights and step sizes to the least strength at which each unit becomes zero.
        optimizer: Has just taken a step.
        weights: The weights, among those of the optimizer, at least one.
        dims: For each weight the dimension along which units lie; `None` if each entry is one.

    """
    entries = sum(weight.numel() for weight in weights)
    stride = next((stride for stride in _STRIDES if entries <= stride * _SAMPLE), _STRIDES[-1]) if dims is None else 1
    samples: dict[tuple[ProcessGroup, ...], list[Tensor]] = {}
    # Whole weights, whose ranks are known; only a sample of what is computed stays.
    for parts, step_sizes in with_step_sizes(optimizer, weights, elementwise=False):
        for part, strengths in zip(parts, vanishing(parts, step_sizes), strict=True):
            own = None if dims is None else dims[part]
            ranks = shard_groups(part, lambda sharded, own=own: own in (None, sharded))  # type: ignore[misc]
            # In the bits of floats >= 0, order is that of integers. 0/0, of an entry that is 0 and does not move, is 0.
            bits = strengths.reshape(-1)[::stride].float().nan_to_num(0.0, torch.inf).view(torch.int32)
            samples.setdefault(ranks, []).append(bits.to(weights[0].device))
    joined = {ranks: torch.cat(bits) for ranks, bits in samples.items()}
    device = weights[0].device
    total = _sum_over_ranks({ranks: torch.as_tensor(bits.numel(), device=device) for ranks, bits in joined.items()})
    wanted = (total * share).round()
    found = torch.zeros((), dtype=torch.int32, device=device)
    for bit in reversed(range(_FLOAT_BITS)):
        # The largest number that fewer than `wanted` units stay below or at: the next one is the answer.
        trial = found + (1 << bit)
        enough = _sum_over_ranks({ranks: (bits < trial).sum() for ranks, bits in joined.items()}) >= wanted
        found = torch.where(enough, found, trial)
    # Rounding must not leave the last unit above the threshold. Infinity, where rates are 0, is out of reach.
    strength = found.view(torch.float32) * _ROUNDING
    return torch.where((wanted > 0) & strength.isfinite(), strength, 0.0)


def _sum_over_ranks(values: dict[tuple[ProcessGroup, ...], Tensor]) -> Tensor:
    for ranks, value in values.items():
        for group in ranks:
            torch.distributed.all_reduce(value, group=group)
    return torch.stack(list(values.values())).sum()
