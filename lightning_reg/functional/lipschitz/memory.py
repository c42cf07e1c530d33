"""Where the entries of tensors are: whether one is a view of the other, or the same."""

from typing import Any

import torch
from torch import Tensor


def memory(tensor: Tensor) -> int:
    """Return what two tensors have in common if a change of one may change the other."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def has_no_entry_twice(tensor: Tensor) -> bool:
    """Tell whether each entry has its own place in memory, as in slices, and not as in what was expanded."""
    reach = 1
    dims = zip(tensor.stride(), tensor.shape, strict=True) if tensor.layout == torch.strided else [(0, 2)]
    for stride, size in sorted(each for each in dims if each[1] != 1):
        if stride < reach:
            return False
        reach += stride * (size - 1)
    return True


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common if they are the same entries in the same order."""
    if tensor.layout != torch.strided:
        return id(tensor), tensor.shape, tensor.dtype
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
