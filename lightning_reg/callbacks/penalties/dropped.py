"""Steps, and parts of steps, that the user has dropped: nothing was asked of the weights, so no mode adds anything."""

from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from lightning_reg.functional.tensors.shards import has_dtensors


def reaches(loss: Tensor, weights: AbstractSet[Tensor]) -> bool:
    """Tell whether `backward` of `loss` gives one of `weights` a gradient, as far as its graph shows that.

    The first that is found will do: in a network it is a few nodes away.
    """
    is_sharded = has_dtensors([weight for weight, _ in zip(weights, range(1), strict=False)])
    nodes: list[Any] = [loss.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        leaf = getattr(node, "variable", None)
        # A function in Python, such as activation checkpointing, hides weights. FSDP2 computes with others than these.
        if isinstance(node, BackwardCFunction) or leaf in weights or (is_sharded and isinstance(leaf, nn.Parameter)):
            return True
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
    return False
