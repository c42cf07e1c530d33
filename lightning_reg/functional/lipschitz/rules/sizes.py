"""Operations whose output size depends on the values of their arguments."""

from collections.abc import Iterator
from typing import Any

import torch

from lightning_reg.functional.lipschitz.value import Traced, is_whole, traced_in

ANY_SIZE = "the size of its result may depend on the values of its input"
_ALWAYS = {"nonzero", "argwhere", "unique", "unique_consecutive", "bincount", "arange", "range"}
# Of these, the number of results depends on sizes, too.
_SEVERAL = {"unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "split_with_sizes"}
_SEVERAL |= {"unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes"}
# A single whole number among the arguments of these functions is an entry or a place. Elsewhere it may be a size.
_TAKE_ENTRIES = (
    "setitem select index_select gather take take_along_dim embedding one_hot isin searchsorted bucketize where"
    " masked_fill scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce index_put put fill"
    " add sub subtract rsub mul multiply div divide true_divide truediv floor_divide floordiv fmod remainder mod pow"
    " lerp addcmul addcdiv maximum minimum clamp clamp_min clamp_max eq ne lt le gt ge equal cat concat concatenate"
    " stack hstack vstack copy bitwise_and bitwise_or bitwise_xor and or xor logical_and logical_or logical_xor"
    " nll_loss cross_entropy to type_as view_as reshape_as expand_as"
)


def is_sized_by_entries(name: str, args: Any, kwargs: Any) -> bool:
    """Tell whether the output size of the operation of this name may depend on the values of its input."""
    later = list(traced_in((args[1:], kwargs)))
    if name in {"masked_select", "repeat_interleave"}:
        return bool(later) or len(args) + len(kwargs) == 1
    if name == "one_hot" and (len(args) + len(kwargs) == 1 or -1 in (*args[1:], *kwargs.values())):
        return True
    if name in _ALWAYS or (name == "where" and len(args) + len(kwargs) == 1):
        return True
    if name == "getitem" and any(each.value.dtype == torch.bool for each in later):
        return True
    return any(each.value.numel() == 1 and is_whole(each.value) for each in _possible_sizes(name, args, kwargs))


def _possible_sizes(name: str, args: Any, kwargs: Any) -> Iterator[Traced]:
    """Yield the arguments of an operation that might be sizes if they are single whole numbers."""
    if name == "getitem":
        places = args[1] if isinstance(args[1], tuple) else args[1:]
        return traced_in([each for each in places if isinstance(each, slice)])
    takes_entries = _TAKE_ENTRIES.split()
    is_in_place = name.endswith("_") or (name.startswith("i") and name[1:] in takes_entries)
    if is_in_place or name in takes_entries:
        return iter(())
    # A method takes a tensor first. Other functions may take a size first.
    return traced_in((args[1:] if hasattr(torch.Tensor, name) else args, kwargs))


def has_any_number(name: str) -> bool:
    """Tell whether the number of results of the operation of this name depends on the sizes of its arguments."""
    return name in _SEVERAL
