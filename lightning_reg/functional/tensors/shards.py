"""Compute on weights that are sharded over ranks (DTensors of FSDP2 or tensor parallelism)."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from typing_extensions import override


def has_dtensors(tensors: Iterable[Tensor]) -> bool:
    """Tell whether any tensor is a `DTensor`, without importing its module."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(tensor, module.DTensor) for tensor in tensors)


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of `tensor`, or all of a plain tensor; differentiable."""
    if not has_dtensors([tensor]):
        return tensor
    return _with_gradient_of_same_layout(tensor.to_local())  # type: ignore[attr-defined]


def _part_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else local_part(tensor)


def local_parts(tensors: list[Tensor]) -> list[Tensor]:
    """Return the local part of each tensor."""
    return [local_part(tensor) for tensor in tensors] if has_dtensors(tensors) else tensors


def whole(tensor: Tensor) -> Tensor:
    """Return `tensor` with the parts of all ranks; differentiable, and a collective call for a `DTensor`."""
    if not has_dtensors([tensor]):
        return tensor
    return _with_gradient_of_same_layout(tensor.full_tensor())  # type: ignore[attr-defined]


class _GradientOfSameLayout(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.stride = tensor.stride()
        return tensor.view_as(tensor)

    @staticmethod
    @override
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (gradient,) = upstream
        # `contiguous` would not change the expanded gradient of an empty shard.
        return gradient if gradient.stride() == ctx.stride else gradient.clone(memory_format=torch.contiguous_format)


def _with_gradient_of_same_layout(tensor: Tensor) -> Tensor:
    """Return a view of a tensor, part or whole of a `DTensor`, with a gradient of the same memory layout.

    torch 2.9 copies a gradient of another layout. If the weight is sharded unevenly, the copy is replicated, and FSDP2
    cannot add it to its shard of the data gradient.
    """
    if not (torch.is_grad_enabled() and tensor.requires_grad):
        return tensor
    view: Tensor = _GradientOfSameLayout.apply(tensor)  # type: ignore[no-untyped-call]
    return view


class Offloaded:
    """Store this rank's part of a tensor on the CPU, in pinned memory if it comes from a GPU.

    Args:
        tensor: The tensor, a `DTensor` or plain.
        device: The device that the tensor comes from and later returns to.

    """

    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        part = local_part(tensor).to("cpu", copy=True)
        self.part = part.pin_memory() if device.type == "cuda" else part
        """This rank's part. With pinned memory, `part.to(device, non_blocking=True)` does not wait."""
        self._device = device
        self._spread: dict[str, Any] | None = None
        if has_dtensors([tensor]):
            self._spread = {
                "device_mesh": tensor.device_mesh,  # type: ignore[attr-defined]
                "placements": tensor.placements,  # type: ignore[attr-defined]
                "shape": tensor.shape,
                "stride": tensor.stride(),
            }

    def whole(self) -> Tensor:
        """Return the tensor with the parts of all ranks; a collective call for a `DTensor`."""
        if self._spread is None:
            return self.part
        module = sys.modules["torch.distributed.tensor"]
        return whole(module.DTensor.from_local(self.part.to(self._device), run_check=False, **self._spread))


def as_placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor` with the placement of `like`; a gradient may still consist of partial sums over ranks."""
    if not has_dtensors([tensor]) or tensor.placements == like.placements:  # type: ignore[attr-defined]
        return tensor
    placed: Tensor = tensor.redistribute(like.device_mesh, like.placements)  # type: ignore[attr-defined]
    return placed


def dense_gradient(weight: Tensor) -> Tensor | None:
    """Return the gradient of `weight`, dense and with the placement of `weight`; None if there is none."""
    grad = weight.grad
    return None if grad is None else as_placed(grad.to_dense() if grad.is_sparse else grad, weight)


def sum_over_shards(term: Callable[..., Tensor], weights: Iterable[Tensor], *beside: Sequence[Tensor | None]) -> Tensor:
    """Return `term` of all `weights`, shape (), the same on every rank.

    A sharded weight gets the gradient of its local shard. A collective call if weights are sharded.

    Args:
        term: A sum over the entries of plain tensors on one device.
        weights: Plain tensors and DTensors. If there are none, the result is 0.
        beside: Further tensors, one or None per weight. `term` gets their local parts, too.

    """
    total = None
    for (_, spread), (positions, parts) in _by_layout(list(weights)).items():
        value = term(parts, *([_part_or_none(some[position]) for position in positions] for some in beside))
        if spread:
            everywhere = value.detach().clone()
            for group in spread:
                torch.distributed.all_reduce(everywhere, group=group)
            value = value + (everywhere - value.detach())
        total = value if total is None else total + value.to(total.device)
    return torch.zeros(()) if total is None else total


@torch.no_grad()
def sum_each_over_shards(term: Callable[[list[Tensor]], Tensor], weights: list[Tensor]) -> Tensor:
    """Return `term` of each weight separately, shape (weights,), the same on every rank; no gradient.

    Weights with the same placement share one collective call.

    Args:
        term: Maps plain tensors on one device to one value each, shape (tensors,), a sum over the entries.
        weights: Plain tensors and DTensors, at least one.

    """
    values: list[Tensor] = []
    order: list[int] = []
    for (_, spread), (positions, parts) in _by_layout(weights).items():
        value = term(parts)
        for group in spread:
            torch.distributed.all_reduce(value, group=group)
        values.append(value.to(values[0].device) if values else value)
        order += positions
    joined = torch.cat(values)
    return joined if order == sorted(order) else joined[sorted(range(len(order)), key=order.__getitem__)]


_Layout = tuple[torch.device, tuple[ProcessGroup, ...]]


def _by_layout(weights: list[Tensor]) -> dict[_Layout, tuple[list[int], list[Tensor]]]:
    """Group the local parts of `weights` by device and by the process groups over which they are sharded.

    Mesh dimensions that only replicate a weight are left out, so no entry counts twice.

    Returns:
        For each layout the positions in `weights`, and the parts.

    """
    layouts: dict[_Layout, tuple[list[int], list[Tensor]]] = {}
    some_sharded = has_dtensors(weights)
    for position, weight in enumerate(weights):
        spread: tuple[ProcessGroup, ...] = ()
        if some_sharded and has_dtensors([weight]):
            mesh = weight.device_mesh  # type: ignore[attr-defined]
            spread = tuple(
                mesh.get_group(dimension)
                for dimension, placement in enumerate(weight.placements)  # type: ignore[attr-defined]
                if not placement.is_replicate()
            )
        positions, parts = layouts.setdefault((weight.device, spread), ([], []))
        positions.append(position)
        parts.append(local_part(weight) if some_sharded else weight)
    return layouts


def sum_over_split_groups(sums: Sequence[Tensor], weights: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Return sums over groups of entries, one group per index along `dim`, including the parts of other ranks.

    If a weight is sharded along another dimension, ranks share its groups. Then this function makes one collective call
    for all `weights` of the same device and mesh.

    Args:
        sums: For each weight, the sums over this rank's part. All dimensions but the groups have size 1.
        weights: The weights, DTensors or plain.
        dim: The dimension along which groups lie.

    """
    results = list(sums)
    spread: dict[tuple[torch.device, torch.dtype, tuple[ProcessGroup, ...]], list[int]] = {}
    for index, weight in enumerate(weights):
        ranks = shard_groups(weight, lambda sharded: sharded != dim % weight.ndim)  # noqa: B023  # called at once
        if ranks:
            spread.setdefault((results[index].device, results[index].dtype, ranks), []).append(index)
    for (*_, ranks), indices in spread.items():
        joined = torch.cat([results[index].reshape(-1) for index in indices])
        for group in ranks:
            torch.distributed.all_reduce(joined, group=group)
        parts = torch.split(joined, [results[index].numel() for index in indices])
        for index, part in zip(indices, parts, strict=True):
            results[index] = part.view(results[index].shape)
    return results


def shard_groups(weight: Tensor, among: Callable[[int], bool]) -> tuple[ProcessGroup, ...]:
    """Return the process groups that shard `weight` along a dimension that `among` accepts."""
    if not has_dtensors([weight]):
        return ()
    mesh = weight.device_mesh  # type: ignore[attr-defined]
    return tuple(
        mesh.get_group(dimension)
        for dimension, placement in enumerate(weight.placements)  # type: ignore[attr-defined]
        if placement.is_shard() and among(placement.dim)
    )


def local_slice(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of `tensor`, sharded like `like`; all ranks hold `tensor`, so none communicates."""
    return local_part(spread_like(tensor, like))


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor` as a `DTensor` sharded like `like`; all ranks hold `tensor`, so none communicates.

    `tensor` may have further dimensions in front, which are not sharded. If its other dimensions differ from `like`, or
    if `like` is a plain tensor, it is returned unchanged.
    """
    further = tensor.ndim - like.ndim
    if not has_dtensors([like]) or further < 0 or tensor.shape[further:] != like.shape:
        return tensor
    module = sys.modules["torch.distributed.tensor"]
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    if further:
        placements = [module.Shard(spot.dim + further) if spot.is_shard() else spot for spot in placements]
    everywhere = module.DTensor.from_local(tensor, mesh, [module.Replicate()] * mesh.ndim, run_check=False)
    spread: Tensor = everywhere.redistribute(mesh, placements)
    return spread
