"""Weights that are spread over ranks (`DTensor`s of FSDP2 or tensor parallelism): each rank works on its own shards."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


def is_dtensor(tensor: Tensor) -> bool:
    """Tell whether `tensor` is a `DTensor`, without the cost of importing that module where nobody uses it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of `tensor`; a plain tensor is its own part."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def local_parts(tensors: list[Tensor]) -> list[Tensor]:
    """Return `local` of each."""
    return [local(tensor) for tensor in tensors] if "torch.distributed.tensor" in sys.modules else tensors


def whole(tensor: Tensor) -> Tensor:
    """Return `tensor` with the parts of all ranks; a collective call for a `DTensor`."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Layout:
    """Where tensors live: their device, and the process groups over whose ranks each is spread (none: it is whole)."""

    device: torch.device
    groups: tuple[ProcessGroup, ...] = ()

    def sum(self, value: Tensor) -> Tensor:
        """Sum `value` over the shards, in place; a collective call on all ranks that hold one."""
        for group in self.groups:
            torch.distributed.all_reduce(value, group=group)
        return value


def by_layout(weights: Sequence[Tensor]) -> dict[Layout, list[Tensor]]:
    """Sort `weights` by layout, each replaced by its local part (differentiably).

    A mesh dimension over which a weight is replicated takes no part in its sums: nothing is counted twice.
    """
    parts: dict[Layout, list[Tensor]] = {}
    for weight in weights:
        spread: tuple[ProcessGroup, ...] = ()
        if is_dtensor(weight):
            mesh = weight.device_mesh  # type: ignore[attr-defined]
            spread = tuple(
                mesh.get_group(dimension)
                for dimension, placement in enumerate(weight.placements)  # type: ignore[attr-defined]
                if not placement.is_replicate()
            )
        parts.setdefault(Layout(weight.device, spread), []).append(local(weight))
    return parts
