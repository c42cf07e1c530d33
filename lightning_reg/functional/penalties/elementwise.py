r"""The kernels behind L1, L2, the elastic net and MCP: :math:`a \sum |w| + b \sum w^2` over the entries of tensors.

One autograd node serves many weights, and an in-place gradient needs no graph. torch's own 1-norm is not accurate
enough: on a CPU `torch.linalg.vector_norm(w, 1)` adds float32 numbers one by one, and is 5 % too low for 25 million.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.tensors.chunks import chunk_size, chunks, in_memory_order, short_rows
from lightning_reg.functional.tensors.shards import local_parts, sum_over_shards


def elementwise_penalty(weights: Iterable[Tensor], *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """Return `l1` * sum abs(w) + `l2` * sum w^2, shape (), in float32 at least.

    With factors of opposite signs, the term of an entry is constant from where its slope is 0, -`l1` / (2 * `l2`).
    Sharded weights count once: the value is the same on all ranks, and each rank gets the gradient of its local shards.
    """
    return sum_over_shards(lambda parts: _term(parts, l1, l2), weights)


@torch.no_grad()
def add_elementwise_gradient_(grads: list[Tensor], weights: list[Tensor], *, l1: float = 0.0, l2: float = 0.0) -> None:
    """Add the gradient of `elementwise_penalty`, `l1` * sign(w) + 2 * `l2` * w, to `grads` in place.

    Args:
        grads: The gradients to add to, each with the shape of its weight.
        weights: The weights; for DTensors the local parts are used.
        l1: Factor of sum abs(w).
        l2: Factor of sum w^2.

    """
    if not weights:
        return
    grads, weights = local_parts(grads), local_parts(weights)
    if not l1:
        torch._foreach_add_(grads, weights, alpha=2 * l2)
        return
    if any(weight.device != weights[0].device for weight in weights):
        for grad, weight in zip(grads, weights, strict=True):
            add_elementwise_gradient_([grad], [weight], l1=l1, l2=l2)
        return
    size = chunk_size(weights)
    scratch = _scratch(weights[0], min(size, max(weight.numel() for weight in weights)), weights[0].dtype)
    for some_grads, some_weights in chunks(grads, weights, size=size):
        torch._foreach_add_(some_grads, _signs(some_weights, scratch), alpha=l1)
        if l2:
            torch._foreach_add_(some_grads, within(some_weights, end_of(l1, l2)), alpha=2 * l2)


def end_of(l1: float, l2: float) -> float:
    """Return the size from which on the term of an entry is constant; infinity for none."""
    return -l1 / (2 * l2) if l1 * l2 < 0 else math.inf


def within(weights: Sequence[Tensor], end: float) -> list[Tensor]:
    """Return `weights`, with entries larger than `end` brought to it."""
    if end == math.inf:
        return list(weights)
    return list(torch._foreach_clamp_max(torch._foreach_clamp_min(list(weights), -end), end))


# Entries of one sum of moduli, so that its scratch memory stays in the cache.
_ABS_ENTRIES = 1 << 17
# Weights with fewer entries are joined before they are summed, because a copy costs less than a call.
_JOINED_ENTRIES = 1 << 14


def _term(weights: list[Tensor], l1: float, l2: float) -> Tensor:
    """Return the value as the sum of a few autograd nodes, which run after all other nodes of a backward pass.

    By default autograd runs the youngest node first. The penalty's gradients, as large as the weights, would then stay
    in memory until the data gradients arrive. If these nodes run last and one by one, each gradient is added and freed
    before the next.
    """
    if torch.compiler.is_compiling():
        return _formula(weights, l1, l2)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # DDP sends gradients during the backward pass, so they must not wait for its end.
        return _ElementwisePenalty.apply(l1, l2, *weights)  # type: ignore[no-untyped-call,no-any-return]  # torch's
    values: list[Tensor] = []
    for (chunk,) in chunks(weights, size=chunk_size(weights), split=False):
        values.append(_ElementwisePenalty.apply(l1, l2, *chunk))  # type: ignore[no-untyped-call]  # torch's
        # Undocumented, so it may disappear; only the memory use depends on it.
        set_order = getattr(values[-1].grad_fn, "_set_sequence_nr", None)
        if set_order is not None:
            set_order(0)
    return torch.stack(values).sum() if len(values) > 1 else values[0]


class _ElementwisePenalty(torch.autograd.Function):
    """One node for any number of weights; its backward pass makes each gradient once, without a graph of sums."""

    @staticmethod
    @override
    def forward(l1: float, l2: float, *weights: Tensor) -> Tensor:
        return _value(list(weights), l1, l2)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.l1, ctx.l2, *weights = inputs
        ctx.save_for_backward(*weights)

    @staticmethod
    @override
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weights = list(ctx.saved_tensors)
        if torch.is_grad_enabled():
            # For second derivatives: plain operations, which autograd can differentiate.
            ended = within(weights, end_of(ctx.l1, ctx.l2))
            return (None, None, *(grad_output * (ctx.l1 * w.sgn() + 2 * ctx.l2 * w) for w in ended))
        return (None, None, *_gradients(weights, ctx.l1, ctx.l2, grad_output))

    @staticmethod
    @override
    def vmap(info: Any, in_dims: tuple[Any, ...], l1: float, l2: float, *weights: Tensor) -> tuple[Tensor, int]:
        values: Tensor = torch.vmap(lambda *members: _formula(list(members), l1, l2), in_dims[2:])(*weights)
        return values, 0


def _value(weights: list[Tensor], l1: float, l2: float) -> Tensor:
    weights = [weight.abs() if weight.is_complex() else weight for weight in weights]
    dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
    if weights[0].device.type == "cpu":
        return _value_on_cpu(weights, l1, l2, dtype)
    weights = within(weights, end_of(l1, l2))
    norms = (factor * _sum_by_foreach(weights, power, dtype) for factor, power in ((l1, 1), (l2, 2)) if factor)
    return sum(norms, start=torch.zeros((), dtype=dtype, device=weights[0].device))


def _sum_by_foreach(weights: list[Tensor], power: int, dtype: torch.dtype) -> Tensor:
    return torch.stack(list(torch._foreach_pow(torch._foreach_norm(weights, power, dtype=dtype), power))).sum()


def _value_on_cpu(weights: list[Tensor], l1: float, l2: float, dtype: torch.dtype) -> Tensor:
    moduli, squares = ([weights[0].new_zeros((), dtype=dtype)] for _ in range(2))
    end = end_of(l1, l2)
    size = _ABS_ENTRIES if l1 else chunk_size(weights)
    scratch = _scratch(weights[0], size if l1 else 0, dtype)
    inner = _scratch(weights[0], size if end < math.inf else 0, dtype)
    for part in _flat_parts(weights, size):
        flat = part.to(dtype)
        if end < math.inf:
            flat = torch.clamp(flat, -end, end, out=inner[: flat.numel()])
        if l1:
            moduli.append(torch.abs(flat, out=scratch[: flat.numel()]).sum())
        if l2:
            rows, rest = short_rows(flat)
            squares.append(torch.linalg.vector_norm(rows, dim=1).square().sum())
            squares.append(torch.linalg.vector_norm(rest).square())
    return l1 * torch.stack(moduli).sum() + l2 * torch.stack(squares).sum()


def _flat_parts(weights: list[Tensor], size: int) -> Iterator[Tensor]:
    """Yield all entries in flat tensors of at most `size` entries: parts of large weights, or joined small weights."""
    small: list[Tensor] = []
    for weight in weights:
        flat = in_memory_order([weight])[0].reshape(-1)
        if flat.numel() < _JOINED_ENTRIES:
            small.append(flat)
        else:
            yield from torch.split(flat, size)
    if small:
        yield from torch.split(torch.cat(small), size)


def _gradients(weights: list[Tensor], l1: float, l2: float, scale: Tensor) -> Sequence[Tensor]:
    if not l1:
        return torch._foreach_mul(weights, 2 * l2 * scale)
    gradients = _signs(weights)
    if l2:
        torch._foreach_mul_(gradients, l1)
        torch._foreach_add_(gradients, within(weights, end_of(l1, l2)), alpha=2 * l2)
    torch._foreach_mul_(gradients, scale if l2 else l1 * scale)
    return gradients


def _signs(weights: list[Tensor], scratch: Tensor | None = None) -> list[Tensor] | tuple[Tensor, ...]:
    """Return the sign of each entry, in `scratch` if there is one and it fits."""
    if scratch is not None and len(weights) == 1 and weights[0].dtype == scratch.dtype:
        (weight,) = weights
        if weight.numel() <= scratch.numel():
            return [torch.sgn(weight, out=scratch[: weight.numel()].view(weight.shape))]
    if any(weight.is_complex() for weight in weights):
        return [weight.sgn() for weight in weights]
    return torch._foreach_sign(weights)


def _scratch(weight: Tensor, entries: int, dtype: torch.dtype) -> Tensor:
    """Return memory for a result on one chunk, on the device of `weight`.

    One block serves all chunks. glibc may return freed memory to the system at once, and each page of a new block costs
    a page fault (measured: six times the time of the computation).
    """
    return weight.new_empty(entries, dtype=dtype)


def _formula(weights: list[Tensor], l1: float, l2: float) -> Tensor:
    """Return the value in plain operations, which a compiler fuses; it cannot trace the loop over chunks."""
    moduli = [
        weight.abs().float() if weight.dtype.itemsize < torch.float32.itemsize else weight.abs() for weight in weights
    ]
    if end_of(l1, l2) < math.inf:
        moduli = [modulus.clamp(max=end_of(l1, l2)) for modulus in moduli]
    return torch.stack([(l1 * modulus + l2 * modulus.square()).sum() for modulus in moduli]).sum()
