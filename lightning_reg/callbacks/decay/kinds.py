"""The share by which a step shrinks weights, from the strength of the decay and the learning rate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_reg.functional.tensors.chunks import NumberOrTensor, alike, chunk_size, chunks

Kind = Literal["decoupled", "independent", "corrected", "cautious"]


@dataclass
class Rates:
    """The learning rates of one parameter group that later steps need."""

    first: NumberOrTensor
    """The rate that `"independent"` decay is relative to."""
    largest: NumberOrTensor
    """The largest rate so far."""

    def note(self, rate: NumberOrTensor) -> None:
        """Record the rate of the coming step."""
        if isinstance(rate, Tensor) or isinstance(self.largest, Tensor):
            # Comparing would wait for the device.
            self.largest = torch.maximum(*alike([rate, self.largest]))
        else:
            self.largest = max(rate, self.largest)


def share_of(kind: Kind, value: float, rate: NumberOrTensor, rates: Rates) -> NumberOrTensor:
    """Return the share that a weight loses of itself in one step.

    Args:
        kind: How the share depends on the rate.
        value: Strength of the decay times its schedule.
        rate: The learning rate of this step.
        rates: The rates of the weight's parameter group, including this step's rate.

    """
    if kind == "independent":
        return _ratio(rate, rates.first) * value
    if kind == "corrected":
        return rate * _ratio(rate, rates.largest) * value
    return rate * value


def found_rate(kind: Kind, group: Mapping[str, Any]) -> NumberOrTensor | None:
    """Return the rate that Prodigy and D-Adaptation find themselves, and multiply by `lr`.

    None for all other optimizers, and for "independent" decay, which only follows changes of `lr`.
    """
    return group["d"] if kind != "independent" and "d" in group and "growth_rate" in group else None


def _ratio(rate: NumberOrTensor, reference: NumberOrTensor) -> NumberOrTensor:
    """Return the quotient; 0 / 0, at the start of a warm-up from 0, gives 0."""
    if isinstance(rate, Tensor) or isinstance(reference, Tensor):
        return torch.nan_to_num(torch.div(*alike([rate, reference])), nan=0.0)
    return rate / reference if reference else 0.0


def shrink_(weights: list[Tensor], share: NumberOrTensor) -> None:
    """Reduce each weight by `share` of itself, in place."""
    torch._foreach_mul_(weights, 1 - share)


def shrink_cautiously_(weights: list[Tensor], before: list[Tensor], share: NumberOrTensor) -> None:
    """Reduce weights by `share` of their values before the step, except entries that the step moved away from zero.

    Args:
        weights: The weights after the step, changed in place.
        before: The same weights before the step; overwritten.
        share: The share.

    """
    for some, some_before in chunks(weights, before, size=chunk_size(weights)):
        # 1 where step and weight have the same sign, else 0. Masks would take several times as long on a CPU.
        away = torch._foreach_sub(some, some_before)
        torch._foreach_mul_(away, some_before)
        torch._foreach_sign_(away)
        torch._foreach_clamp_min_(away, 0)
        torch._foreach_mul_(away, some_before)
        torch._foreach_sub_(some_before, away)
        torch._foreach_mul_(some_before, share)
        torch._foreach_sub_(some, some_before)
