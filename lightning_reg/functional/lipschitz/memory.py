"""The places of tensors in memory, which show whether tensors share entries or are the same."""

from typing import Any

import torch
from torch import Tensor


def memory(tensor: Tensor) -> int:
    """Return an identifier of a tensor's memory. If two tensors share it, changing one may change the other."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def has_no_entry_twice(tensor: Tensor) -> bool:
    """Return whether each entry has its own place in memory. Slices have this property, expanded tensors do not."""
    reach = 1
    dims = zip(tensor.stride(), tensor.shape, strict=True) if tensor.layout == torch.strided else [(0, 2)]
    for stride, size in sorted(each for each in dims if each[1] != 1):
        if stride < reach:
            return False
        reach += stride * (size - 1)
    return True


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Return an identifier of a tensor's entries. Two tensors share it if they view the same entries in order."""
    if tensor.layout != torch.strided:
        return id(tensor), tensor.shape, tensor.dtype
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
