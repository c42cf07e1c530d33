"""ResNets of usual size, and the shapes of their parameters."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from typing_extensions import override


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(inner + self.shortcut(x))


class Bottleneck(nn.Module):
    """The block of a ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False) for before, after, kernel, step in sizes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _, after, _, _ in sizes)
        is_same = inputs == 4 * width and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            inner = norm(convolution(torch.relu(inner) if index else inner))
        return torch.relu(inner + self.shortcut(x))


def resnet18(classes: int = 10) -> nn.Module:
    """Return a ResNet-18, 11 million weights."""
    sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Block(*size) for size in [*sizes, (512, 512, 1)]]
    return _network(blocks, 512, classes)


def resnet50(classes: int = 10) -> nn.Module:
    """Return a ResNet-50, 23 million weights."""
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(count):
            blocks.append(Bottleneck(inputs, width, 2 if width > 64 and not index else 1))
            inputs = 4 * width
    return _network(blocks, 2048, classes)


def _network(blocks: Iterable[nn.Module], channels: int, classes: int) -> nn.Module:
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def shapes_of(make: Callable[[int], nn.Module]) -> list[torch.Size]:
    """Return the shapes of the parameters of a network for 1000 classes."""
    with torch.device("meta"):
        return [parameter.shape for parameter in make(1000).parameters()]
