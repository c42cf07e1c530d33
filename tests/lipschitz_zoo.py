"""Small networks whose Lipschitz constants are bounded, with an example input of each."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualCNN(nn.Module):
    """Convolutions with batch normalization, around which the input goes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
        self.down = nn.Conv2d(3, 3, 1, stride=2)
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.norm(self.stem(images)))
        hidden = hidden + self.block(hidden)
        hidden = functional.relu(self.down(hidden) + functional.avg_pool2d(hidden, 2))
        return self.head(hidden.mean((2, 3)))


class Shared(nn.Module):
    """One module used twice, and a factor: the product over modules is far below the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return 3 * self.layer(torch.tanh(self.layer(inputs)))


class Branches(nn.Module):
    """Halves of the features go different ways, and are put together."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor([0.5, -2.0, 1.0]))
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = inputs.chunk(2, dim=-1)
        left = functional.softplus(self.left(first)) * self.scale
        right = functional.hardswish(self.right(second) + self.shift) / 2
        joined = torch.cat([left, right, first - second], dim=-1)
        return functional.log_softmax(joined.view(inputs.size(0), -1), dim=1)


class Mixer(nn.Module):
    """Tokens and features in turn, over a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.features = nn.Linear(4, 4), nn.Linear(3, 3)
        self.position = nn.Parameter(torch.randn(4, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs + self.position
        hidden = hidden + self.tokens(functional.gelu(hidden).transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self.features(functional.silu(hidden))
        return hidden.amax(1)


class TwoInputs(nn.Module):
    """Both inputs count."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(first) - self.second(second))
        return {"hidden": hidden, "sum": hidden.sum(-1)}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5), nn.Sigmoid())


def smooth_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 8), nn.Mish(), nn.Linear(8, 3), nn.Softmax(-1))


def normalized_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.PReLU(8), nn.Dropout(0.5), nn.Linear(8, 4), nn.ELU(1.5))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 8),
        nn.Unflatten(1, (2, 2, 2)),
        nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.SELU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ReplicationPad2d(1),
        nn.Conv2d(3, 1, 3),
    )


def tanh_conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 5, stride=2, padding=2), nn.Tanh(), nn.AdaptiveMaxPool1d(3), nn.InstanceNorm1d(4, eps=0.1)
    )


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "mlp": (mlp, ((3, 6),)),
    "smooth mlp": (smooth_mlp, ((3, 6),)),
    "normalized mlp": (normalized_mlp, ((3, 6),)),
    "cnn": (cnn, ((2, 1, 8, 8),)),
    "residual cnn": (ResidualCNN, ((2, 1, 6, 6),)),
    "decoder": (decoder, ((2, 3),)),
    "conv1d": (tanh_conv1d, ((2, 2, 13),)),
    "shared": (Shared, ((3, 5),)),
    "branches": (Branches, ((3, 8),)),
    "mixer": (Mixer, ((2, 4, 3),)),
    "two inputs": (TwoInputs, ((3, 3), (3, 2))),
}
"""By name: how to build a network, and the shapes of its inputs, a batch each."""


def member(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network with weights from a seed, in training mode, after some batches; and an example of its inputs."""
    build, shapes = ZOO[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        with torch.no_grad():
            for _ in range(5):  # statistics of batch normalization
                network(*(1.5 * torch.randn(8, *shape[1:]) for shape in shapes))
        return network, tuple(torch.randn(*shape) for shape in shapes)
