"""Rules of operations that move entries, leave some out, or copy them."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_reg.functional.lipschitz.rules.registry import for_all, for_functions
from lightning_reg.functional.lipschitz.value import (
    Bound,
    NoBoundError,
    Operation,
    Traced,
    constant,
    is_whole,
    together,
    traced_in,
)

_FIRST = 1 << 50
# Rows stay rows if the last dimension keeps its size.
_RESHAPING = (
    "reshape view flatten unflatten ravel contiguous clone detach deepcopy squeeze unsqueeze view_as reshape_as"
)
_MOVING = (
    "permute transpose movedim moveaxis swapaxes swapdims t T mT H mH adjoint roll flip fliplr flipud rot90 tril triu"
    " diagonal chunk split tensor_split hsplit vsplit dsplit unbind narrow select unsafe_chunk unsafe_split"
    " split_with_sizes pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle to float double type_as cpu"
    " cuda requires_grad_ real imag data pos positive view_as_real view_as_complex conj conj_physical resolve_conj"
    " resolve_neg type diag diagflat diag_embed squeeze_copy unsqueeze_copy"
)


def _fixed_places(values: Any) -> None:
    """Raise if a whole number depends on the input. Other tensors give only their shape or dtype."""
    if any(is_whole(each.value) for each in traced_in(values)):
        msg = "indexing by positions that depend on the input is discontinuous"
        raise NoBoundError(msg)


def _reshaped(op: Operation, input: Any, *rest: Any, **named: Any) -> Bound:
    _fixed_places([rest, named])
    if not isinstance(input, Traced):  # a constant takes the shape of a value that depends on the input
        constant(input)
        return Bound(0.0)
    before, after = input.value.shape, op.output.shape
    if op.output.dtype != input.value.dtype:
        msg = "reinterpreting bits as another dtype is discontinuous"
        raise NoBoundError(msg)
    if before == after:
        return replace(input.bound, source=input)
    return Bound(input.bound.value, input.bound.chain if before[-1:] == after[-1:] else None, source=input)


for_all((nn.Flatten, nn.Unflatten), _RESHAPING, _reshaped)


def _moved(op: Operation, input: Any, *rest: Any, **named: Any) -> Bound:
    _fixed_places([rest, named])
    if not isinstance(input, Traced):  # a constant takes the dtype of a value that depends on the input
        constant(input)
        return Bound(0.0)
    return input.bound if op.output is input.value else Bound(input.bound.value, source=input)


for_all((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), _MOVING, _moved)


@for_functions("atleast_1d atleast_2d atleast_3d")
def _at_least(op: Operation, *tensors: Any) -> Bound:
    """Return the bound of one tensor, or of several together. These functions also take a list."""
    if len(tensors) == 1 and isinstance(tensors[0], Traced):
        return _moved(op, tensors[0])
    return Bound(together(each.bound.value for each in traced_in(tensors)))


def copied(op: Operation, input: Any, *rest: Any, **named: Any) -> float:
    """Return the factor of an operation that copies entries: the root of the largest number of copies of an entry."""
    constant([rest, named])
    if not isinstance(input, Traced):
        msg = "indexing by positions that depend on the input is discontinuous"
        raise NoBoundError(msg)
    count = input.value.numel()
    # Float64 holds whole numbers up to 2^53, and padding works in it. No padding value is as large as these numbers.
    numbers = torch.arange(count, dtype=torch.float64, device=input.value.device).view(input.value.shape) + _FIRST
    found = op.apply(numbers, *rest, **named).flatten() - _FIRST
    found = found[(found >= 0) & (found < count) & (found == found.round())].long()
    return math.sqrt(int(torch.bincount(found).amax())) if found.numel() else 0.0


for_all(
    (
        *(
            getattr(nn, f"{kind}Pad{dims}d")
            for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
            for dims in (1, 2, 3)
        ),
        nn.Unfold,
    ),
    "expand repeat tile repeat_interleave broadcast_to pad unfold",
    copied,
)


@for_functions("expand_as")
def _expanded(op: Operation, input: Any, other: Any) -> Bound:
    if not isinstance(input, Traced):
        constant(input)
        return Bound(0.0)
    return input.bound.after(copied(op, input, other.value if isinstance(other, Traced) else other))
