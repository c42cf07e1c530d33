"""Operations whose output size depends on the values of their arguments."""

from typing import Any

import torch

from lightning_reg.functional.lipschitz.value import traced_in

ANY_SIZE = "the size of its result depends on the values of its input"
_ALWAYS = {"nonzero", "argwhere", "unique", "unique_consecutive", "bincount"}


def is_sized_by_entries(name: str, args: Any, kwargs: Any) -> bool:
    """Tell whether the output size of the operation of this name depends on the values of its input."""
    later = list(traced_in((args[1:], kwargs)))
    if name in {"masked_select", "repeat_interleave"}:
        return bool(later) or len(args) + len(kwargs) == 1
    if name == "getitem":
        return any(each.value.dtype == torch.bool for each in later)
    if name == "one_hot":
        return len(args) + len(kwargs) == 1 or -1 in (*args[1:], *kwargs.values())
    return name in _ALWAYS or (name == "where" and len(args) + len(kwargs) == 1)
