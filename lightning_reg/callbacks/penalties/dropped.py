"""Steps, and parts of steps, that the user has dropped: no loss reaches the weights, so no mode adds a penalty."""

from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction


def reaches(loss: Tensor, weights: AbstractSet[Tensor], *, are_sharded: bool) -> bool:
    """Tell whether `backward` of `loss` gives one of `weights` a gradient, as far as its graph shows.

    The search stops at the first one, which is usually a few nodes away.
    """
    nodes: list[Any] = [loss.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        leaf = getattr(node, "variable", None)
        # A Python function, such as activation checkpointing, hides weights. FSDP computes with other tensors.
        if isinstance(node, BackwardCFunction) or leaf in weights or (are_sharded and isinstance(leaf, nn.Parameter)):
            return True
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
    return False
