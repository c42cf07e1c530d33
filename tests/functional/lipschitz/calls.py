"""Functions as networks, and constants that they use."""

import torch
from torch import nn


class Calls(nn.Module):
    """A function as a network; tensors it uses are constants."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def constant(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def network_of(function):
    return (function if isinstance(function, nn.Module) else Calls(function)).double().eval()
