"""The proximal step of `mode="proximal"`, right after each step that an optimizer really takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.callbacks.trainer.step_hooks import step_happens
from lightning_reg.functional.proximal.step_size import find_rule
from lightning_reg.functional.tensors.chunks import NumberOrTensor, in_memory_order
from lightning_reg.functional.tensors.shards import local_part, local_parts

Proximal = Callable[..., None]
"""A function of weights, factors, and the memory of the weights if there is one."""
Recall = Callable[[Sequence[Tensor]], tuple[()] | tuple[Sequence[Tensor | None]]]

# Entries processed at once: intermediate results stay in the cache on a CPU, and small on a GPU.
_CPU_ENTRIES = 1 << 18
_GPU_ENTRIES = 1 << 24
_MEMORY = "lightning_reg.memory"
_SCALE = "lightning_reg.scale"


def fill_gradients(weights: Sequence[Tensor]) -> None:
    """Give weights without a gradient a gradient of 0, so that the optimizer also keeps a step size for them."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)


@torch.no_grad()
def shrink(
    proximal: Proximal,
    optimizer: Optimizer,
    weights: Sequence[Tensor],
    strength: NumberOrTensor,
    recall: Recall = lambda _: (),
    *,
    elementwise: bool,
) -> None:
    """Apply the proximal operator to weights, with `strength` times the step size that `optimizer` has for each.

    Args:
        proximal: Replaces weights, in place, by its result for one factor each; `elementwise` if it may get parts.
        optimizer: The optimizer that has just taken a step.
        weights: The weights; the optimizer has moved them.
        strength: Factor on the penalty, or one for each weight, shape (weights,).
        recall: Maps weights to further arguments of `proximal`, see `Formula.recalled`.
        elementwise: Whether `proximal` works on flat parts of weights; else it gets them as the optimizer holds them.

    """
    happens = step_happens(optimizer)
    if happens is not None:
        strength = strength * happens
    for parts, factors, *memory in with_step_sizes(optimizer, weights, strength, recall, elementwise=elementwise):
        proximal(parts, factors, *memory)


def with_step_sizes(
    optimizer: Optimizer,
    weights: Sequence[Tensor],
    scale: NumberOrTensor = 1.0,
    recall: Recall = lambda _: (),
    *,
    elementwise: bool,
) -> Iterator[tuple[Any, ...]]:
    """Yield `weights`, or parts of them if `elementwise`, in lists, with `scale` times the optimizer's step sizes.

    `scale` may have one entry for each weight, shape (weights,). The step sizes are followed by the results of
    `recall`, if any, for these weights in the same parts. The optimizer must have moved all of them.
    """
    rule = find_rule(type(optimizer))
    if rule is None:  # refused before training
        return
    chosen = set(weights)
    scales = dict(zip(weights, scale.unbind(), strict=True)) if isinstance(scale, Tensor) and scale.ndim else {}
    for group in optimizer.param_groups:
        members = [weight for weight in group["params"] if weight in chosen]
        states = [optimizer.state.get(weight, {}) for weight in members]
        # Stored in the optimizer's state, so that it is cut in the same way.
        if scales:
            states = [{**state, _SCALE: scales[weight]} for weight, state in zip(members, states, strict=True)]
        for memory in recall(members):
            states = [{**state, _MEMORY: kept} for state, kept in zip(states, memory, strict=True)]
        for parts, part_states in _cut(members, states, split=elementwise) if rule.elementwise else [(members, states)]:
            all_alike = 1.0 if scales else scale
            step_sizes = rule.scaled(local_parts(parts) if rule.elementwise else parts, part_states, group, all_alike)
            local_sizes = [local_part(size) if isinstance(size, Tensor) else size for size in step_sizes]
            if scales:
                local_sizes = [size * state[_SCALE] for size, state in zip(local_sizes, part_states, strict=True)]
            memories = ([state[_MEMORY] for state in part_states] for _ in recall(()))
            if elementwise:
                memories = ([None if m is None else local_part(m) for m in some] for some in memories)
            yield (local_parts(parts) if elementwise else parts, local_sizes, *memories)


def _cut(
    weights: Sequence[Tensor], states: Sequence[Mapping[str, Any]], *, split: bool
) -> Iterator[tuple[list[Tensor], list[Mapping[str, Any]]]]:
    """Yield weights with the local parts of their states, in lists of about `_CPU_ENTRIES` or `_GPU_ENTRIES` entries.

    If `split`, they are flat parts of this rank's shards; else unchanged weights, in the same lists on all ranks.
    """
    parts: list[Tensor] = []
    part_states: list[Mapping[str, Any]] = []
    entries = 0
    for weight, state in zip(weights, states, strict=True):
        size = _CPU_ENTRIES if weight.device.type == "cpu" else _GPU_ENTRIES
        own = {
            name: local_part(value) if isinstance(value, Tensor) and (split or name != _MEMORY) else value
            for name, value in state.items()
        }
        for part, part_state in _split(local_part(weight), own, size) if split else [(weight, own)]:
            if parts and (entries + part.numel() > size or part.device != parts[0].device):
                yield parts, part_states
                parts, part_states, entries = [], [], 0
            parts.append(part)
            part_states.append(part_state)
            entries += part.numel()
    if parts:
        yield parts, part_states


def _split(weight: Tensor, state: Mapping[str, Any], size: int) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    """Yield flat parts of a large weight, with the parts of every tensor in its state that has the same shape."""
    alike = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.shape == weight.shape}
    tensors = in_memory_order([weight, *alike.values()])
    memory = state.get(_MEMORY)
    # A memory with another shape belongs to the whole weight.
    if (
        weight.numel() <= size
        or (memory is not None and _MEMORY not in alike)
        or not all(tensor.is_contiguous() for tensor in tensors)
    ):
        yield weight, state
        return
    for part, *others in zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True):
        yield part, {**state, **dict(zip(alike, others, strict=True))}
