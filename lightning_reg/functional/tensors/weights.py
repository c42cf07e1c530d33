"""The common check of `weights` arguments in all functions and metrics."""

from collections.abc import Iterable, Mapping
from reprlib import repr as short_repr

import torch
from torch import Tensor, nn


def as_weights(weights: object, *, kinds: str = "a tensor or an iterable of tensors") -> list[Tensor]:
    """Return a user's `weights` argument as a list; a tensor is one weight, not the list of its rows.

    Raises:
        TypeError: If `weights` is none of `kinds`, or a tensor has neither floating-point nor complex numbers.

    """
    if isinstance(weights, Tensor):
        tensors = [weights]
    # A tuple of classes, not a union, which the compiler of torch 2.9 does not know.
    elif isinstance(weights, Iterable) and not isinstance(weights, (str, bytes, Mapping, nn.Module)):
        tensors = list(weights)
    else:
        remedies = {Mapping: " Pass its `.values()`.", nn.Module: " Pass its `.parameters()`."}
        remedy = next((text for kind, text in remedies.items() if isinstance(weights, kind)), "")
        msg = f"`weights` must be {kinds}, got {short_repr(weights)} of type {type(weights).__name__}.{remedy}"
        raise TypeError(msg)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            msg = f"`weights` must be {kinds}, got one with {short_repr(tensor)} of type {type(tensor).__name__} in it."
            raise TypeError(msg)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            msg = f"`weights` must have floating-point or complex entries, got {tensor.dtype}."
            raise TypeError(msg)
        _refuse_sparse("weights", tensor)
    return tensors


def real_weights(weights: object) -> list[Tensor]:
    """Return a user's `weights` argument as a list of real tensors.

    Raises:
        TypeError: If `weights` is anything else.

    """
    tensors = as_weights(weights)
    for tensor in tensors:
        if tensor.is_complex():
            msg = f"`weights` must be real, got {tensor.dtype}. Pass `torch.view_as_real` of complex ones."
            raise TypeError(msg)
    return tensors


def as_weight(weight: object) -> Tensor:
    """Return a user's `weight` argument, a tensor of floating-point or complex numbers."""
    if not isinstance(weight, Tensor) or not (weight.is_floating_point() or weight.is_complex()):
        kind = weight.dtype if isinstance(weight, Tensor) else f"{short_repr(weight)} of type {type(weight).__name__}"
        msg = f"`weight` must be a tensor of floating-point or complex numbers, got {kind}."
        raise TypeError(msg)
    _refuse_sparse("weight", weight)
    return weight


def _refuse_sparse(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        msg = f"`{name}` must be dense, got a tensor of layout {tensor.layout}. Pass its `.to_dense()`."
        raise TypeError(msg)


def check_fits(name: str, value: float, weights: Iterable[Tensor]) -> None:
    """Raise if `value` is infinite in the precision of one of `weights`: times an entry of 0 it would be NaN."""
    if value <= 1:  # finite in every precision: strengths are small, and this runs in each training step
        return
    for weight in weights:
        if value > (largest := torch.finfo(weight.dtype).max):
            msg = f"`{name}` must be at most {largest:g}, the largest number of {weight.dtype}, got {value:g}."
            raise ValueError(msg)
