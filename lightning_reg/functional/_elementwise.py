r"""The kernels behind L1, L2 and the elastic net: :math:`a \sum |w| + b \sum w^2` over the entries of many tensors.

One autograd node for all weights, and a gradient in place for those who need no graph. torch's own 1-norm is no
substitute: on a CPU `torch.linalg.vector_norm(w, 1)` adds one float32 after the other, and is 5 % low for 25 million.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.functional._groups import group_size, groups
from lightning_reg.functional._shards import Layout, by_layout, local_parts


def elementwise_penalty(weights: Iterable[Tensor], *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """Return `l1` * sum abs(w) + `l2` * sum w^2, shape (), in float32 at least.

    Sharded weights count once: the value is the same on all ranks, the gradient is that of the local shards.
    """
    totals = [
        _formula(parts, l1, l2) if torch.compiler.is_compiling() else _ElementwisePenalty.apply(l1, l2, layout, *parts)  # type: ignore[no-untyped-call]  # torch's
        for layout, parts in by_layout(list(weights)).items()
    ]
    return sum((total.to(totals[0].device) for total in totals[1:]), start=totals[0]) if totals else torch.zeros(())


@torch.no_grad()
def add_elementwise_gradient_(grads: list[Tensor], weights: list[Tensor], *, l1: float = 0.0, l2: float = 0.0) -> None:
    """Add the gradient of `elementwise_penalty`, `l1` * sign(w) + 2 * `l2` * w, to `grads` in place.

    Args:
        grads: What to add to, each of the shape of its weight.
        weights: The weights; of `DTensor`s the local parts are worked on.
        l1: Factor of sum abs(w).
        l2: Factor of sum w^2.

    """
    if not weights:
        return
    grads, weights = local_parts(grads), local_parts(weights)
    if not l1:
        torch._foreach_add_(grads, weights, alpha=2 * l2)
        return
    for some_grads, some_weights in groups(grads, weights, size=group_size(weights)):
        torch._foreach_add_(some_grads, _signs(some_weights), alpha=l1)
        if l2:
            torch._foreach_add_(some_grads, some_weights, alpha=2 * l2)


# Entries per sum: few enough for float32 (relative error 4e-7 for 2^16, 6e-6 for 2^20), many enough to be fast.
_VALUE_ENTRIES = 1 << 16


class _ElementwisePenalty(torch.autograd.Function):
    """One node for any number of weights; its backward makes each gradient once, with no graph of sums to walk."""

    @staticmethod
    @override
    def forward(l1: float, l2: float, layout: Layout, *weights: Tensor) -> Tensor:
        return layout.sum(_value(list(weights), l1, l2))

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.l1, ctx.l2, _, *weights = inputs
        ctx.save_for_backward(*weights)

    @staticmethod
    @override
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weights = list(ctx.saved_tensors)
        if torch.is_grad_enabled():
            # Somebody wants the gradient of this gradient: plain operations, which autograd can follow.
            return (None, None, None, *(grad_output * (ctx.l1 * w.sgn() + 2 * ctx.l2 * w) for w in weights))
        return (None, None, None, *_gradients(weights, ctx.l1, ctx.l2, grad_output))


def _value(weights: list[Tensor], l1: float, l2: float) -> Tensor:
    weights = [weight.abs() if weight.is_complex() else weight for weight in weights]
    dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
    sums = _sums_on_cpu if weights[0].device.type == "cpu" else _sums_by_foreach
    return sum(
        (
            factor * torch.stack(list(sums(weights, power, dtype))).sum()
            for factor, power in ((l1, 1), (l2, 2))
            if factor
        ),
        start=torch.zeros((), dtype=dtype, device=weights[0].device),
    )


def _sums_by_foreach(weights: list[Tensor], power: int, dtype: torch.dtype) -> Sequence[Tensor]:
    return torch._foreach_pow(torch._foreach_norm(weights, power, dtype=dtype), power)


def _sums_on_cpu(weights: list[Tensor], power: int, dtype: torch.dtype) -> list[Tensor]:
    sums = [torch.zeros((), dtype=dtype)]
    for (group,) in groups(weights, size=_VALUE_ENTRIES):
        flat = torch.cat([tensor.reshape(-1) for tensor in group]) if len(group) > 1 else group[0].reshape(-1)
        flat = flat.to(dtype)
        sums.append(flat.abs().sum() if power == 1 else torch.dot(flat, flat))
    return sums


def _gradients(weights: list[Tensor], l1: float, l2: float, scale: Tensor) -> Sequence[Tensor]:
    if not l1:
        return torch._foreach_mul(weights, 2 * l2 * scale)
    gradients = [torch.empty_like(weight) for weight in weights]
    for some_gradients, some_weights in groups(gradients, weights, size=group_size(weights)):
        torch._foreach_copy_(some_gradients, _signs(some_weights))
        torch._foreach_mul_(some_gradients, l1)
        if l2:
            torch._foreach_add_(some_gradients, some_weights, alpha=2 * l2)
        torch._foreach_mul_(some_gradients, scale)
    return gradients


def _signs(weights: list[Tensor]) -> list[Tensor] | tuple[Tensor, ...]:
    if any(weight.is_complex() for weight in weights):
        return [weight.sgn() for weight in weights]
    return torch._foreach_sign(weights)


def _formula(weights: list[Tensor], l1: float, l2: float) -> Tensor:
    """Return the value in plain operations, which a compiler fuses; it cannot look into the loop over groups."""
    moduli = [
        weight.abs().float() if weight.dtype.itemsize < torch.float32.itemsize else weight.abs() for weight in weights
    ]
    return torch.stack([(l1 * modulus + l2 * modulus.square()).sum() for modulus in moduli]).sum()
