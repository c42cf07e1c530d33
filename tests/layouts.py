"""Layers of a user whose weight has a row for each input, and parameters that stand beside layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_reg import register_layer
from tests.models import Regressor


class InputsFirst(nn.Module):
    """A linear layer of a user, whose parameter has a name of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.bias


class InputsFirstConvolution(nn.Module):
    """A convolution of a user with weight (inputs, outputs, taps)."""

    def __init__(self, inputs: int, outputs: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, taps))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(x, self.weight.transpose(0, 1))


class Convolutions(Regressor):
    """Kernels with their output units along the first and the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv1d(4, 3, 2), nn.ConvTranspose1d(3, 5, 2), InputsFirstConvolution(5, 2, 2))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.network(batch[0][:, :1].unflatten(1, (1, 1)).expand(-1, 4, 6)).square().mean()


class WithTokens(nn.Module):
    """A layer of torch, with the parameters beside layers that vision and state space models have."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 5))
        self.pos_embed = nn.Parameter(torch.randn(1, 3, 5))
        self.layer_scale = nn.Parameter(torch.full((5, 1, 1), 1e-2))
        self.A_log = nn.Parameter(torch.rand(5, 4))
        self.encoder = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (batch, 7) for (batch, 5)."""
        tokens = torch.cat([self.cls_token.expand(len(x), 1, 5), x[:, None].expand(-1, 2, -1)], 1) + self.pos_embed
        scaled = tokens * self.layer_scale[:, 0, 0] * self.A_log.exp().mean(1)
        return self.encoder(scaled).mean(1)


BESIDE_LAYERS = {
    "cls_token": "1 x 1 x 5",
    "pos_embed": "1 x 3 x 5",
    "layer_scale": "5 x 1 x 1",
    "A_log": "5 x 4",
}

register_layer(InputsFirst, weight="kernel", output_dim=1)
register_layer(InputsFirstConvolution, output_dim=1)
