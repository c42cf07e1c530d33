"""Layers of every kind, and their weights as NumPy arrays under the names a user gave them."""

import numpy as np
import pytest
import torch
from torch import nn


def layers_of_every_kind() -> nn.Module:
    """Return a module whose embedding and head share one weight."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.ModuleDict(
            {
                "embedding": nn.Embedding(11, 4),
                "lstm": nn.LSTM(4, 6),
                "attention": nn.MultiheadAttention(6, 2),
                "norm": nn.LayerNorm(6),
                "conv1": nn.Conv1d(6, 4, 3, padding=1),
                "conv2": nn.Conv2d(2, 3, 3, stride=2, bias=False),
                "conv3": nn.Conv3d(1, 2, 2),
                "up": nn.ConvTranspose2d(3, 2, 3),
                "grouped": nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode="circular"),
                "head": nn.Linear(4, 11),
            }
        )
        module["head"].weight = module["embedding"].weight
    return module


def weights_by_name(module: nn.Module) -> dict[str, np.ndarray]:
    """Return every tensor of two or more dimensions once, in float64, without `.weight` in its name."""
    return {
        name.removesuffix(".weight"): parameter.detach().double().numpy()
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2
    }


every_layout = pytest.mark.parametrize(
    "layout",
    [
        lambda weight: weight.to(memory_format=torch.channels_last),
        lambda weight: weight.transpose(0, 2).contiguous().transpose(0, 2),
        lambda weight: torch.stack([weight, weight])[0],
        lambda weight: torch.stack([weight, weight], dim=-1)[..., 1],  # with gaps
    ],
)
