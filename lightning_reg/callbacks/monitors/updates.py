"""How far an optimizer step, and decay alone, move each layer, relative to its norm."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.penalties.counts import power_sums
from lightning_reg.functional.tensors.chunks import NumberOrTensor, alike
from lightning_reg.selection import Weight


class Moved(NamedTuple):
    """The movement of each weight, by name, as a share of its norm."""

    update: dict[str, Tensor]
    decay: dict[str, Tensor]


class Updates:
    """A measurement of how far a step moves the weights. It copies the weights before the step.

    A step includes the changes that callbacks make right before and after the optimizer's update.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._weights = weights
        self._before: dict[str, Tensor] = {}
        self._decay: Mapping[Tensor, NumberOrTensor] = {}

    @torch.no_grad()
    def begin(self, decay: Mapping[Tensor, NumberOrTensor]) -> None:
        """Copy the weights that train now, and record the share that decay will remove in the coming step."""
        self._decay = decay
        trained = [weight for weight in self._weights if weight.parameter.requires_grad]
        self._before = {weight.name: weight.parameter.detach().clone() for weight in trained}

    @torch.no_grad()
    def end(self) -> Moved:
        r"""Return :math:`\|\Delta w\|_2 / \|w\|_2` for each weight, where w is the weight before the step.

        The ratio is 0 if a weight did not move, and infinity if a weight of zeros moved. Without `begin`, there are no
        ratios. Sharded weights make this a collective call.
        """
        before, self._before = self._before, {}
        pairs = [(weight, before[weight.name]) for weight in self._weights if weight.name in before]
        if not pairs:
            return Moved({}, {})
        moved = power_sums([weight.parameter.detach() - old for weight, old in pairs], 2)
        lengths = power_sums([old for _, old in pairs], 2)
        ratios = torch.where(moved == 0, 0, (moved / lengths).sqrt())
        decay = alike([ratios[0], *(self._decay.get(weight.parameter, 0.0) for weight, _ in pairs)])[1:]
        names = [weight.name for weight, _ in pairs]
        return Moved(dict(zip(names, ratios.unbind(), strict=True)), dict(zip(names, decay, strict=True)))
