"""Modules that hold a dropout rate, each so small that its output shows what was dropped."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROWS = 4096


class DropPath(nn.Module):
    """As in timm: whole rows, scaled."""

    def __init__(self, drop_prob: float | None = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, inputs):
        if not self.drop_prob or not self.training:
            return inputs
        keep = 1 - self.drop_prob
        mask = inputs.new_empty((len(inputs),) + (1,) * (inputs.ndim - 1)).bernoulli_(keep)
        return inputs * (mask / keep if self.scale_by_keep else mask)


class StochasticDepth(nn.Module):
    """As in torchvision: rows, or the whole batch."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, inputs):
        if not self.training or self.p == 0:
            return inputs
        size = [len(inputs) if self.mode == "row" else 1] + [1] * (inputs.ndim - 1)
        return inputs * torch.empty(size).bernoulli_(1 - self.p).div_(1 - self.p)


class HfAttention(nn.Module):
    """As in Hugging Face models: the rate is a number, and a function drops."""

    def __init__(self, attention_dropout: float = 0.1) -> None:
        super().__init__()
        self.attention_dropout = attention_dropout

    def forward(self, inputs):
        query = inputs.unsqueeze(1)
        scores = torch.softmax(query @ query.transpose(1, 2), dim=-1)
        rate = 0.0 if not self.training else self.attention_dropout
        return (nn.functional.dropout(scores, p=rate, training=self.training) @ query).squeeze(1)


class FusedAttention(nn.Module):
    """As in timm: a fused kernel gets the rate of a child that is never called."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(rate)

    def forward(self, inputs):
        query = inputs[:, None, None]
        rate = self.attn_drop.p if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=rate)[:, 0, 0]


class Noise(nn.Module):
    """A user's own module: rows are dropped at `noise_rate`."""

    def __init__(self, noise_rate: float = 0.1) -> None:
        super().__init__()
        self.noise_rate = noise_rate

    def forward(self, inputs):
        if not self.training:
            return inputs
        return inputs * (torch.rand(len(inputs), 1) >= self.noise_rate) / (1 - self.noise_rate)


class Attention(nn.Module):
    """One head, one key, all weights the identity: a row of the output is the input, or 0."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, dropout=0.1, bias=False)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))
            self.attention.out_proj.weight.copy_(torch.eye(2))

    def forward(self, inputs):
        query = inputs.unsqueeze(0)
        return self.attention(query, query, query, need_weights=False)[0][0]


class Recurrent(nn.Module):
    """Two layers and one time step, no bias: an input of 0 to the second layer is an output of 0."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(2, 1, num_layers=2, dropout=0.1, bias=False)
        for weight in self.recurrent.parameters():
            nn.init.ones_(weight)

    def forward(self, inputs):
        return self.recurrent(inputs.unsqueeze(0))[0][0]


class Kind(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (ROWS, 2)
    """Of an input of ones."""
    units: Callable[[Tensor], Tensor] = lambda outputs: outputs.flatten(1)
    """From the output to a matrix: each row is dropped or kept as a whole."""
    keeps_mean: bool = True
    attribute: str | None = None


def everything(outputs):
    return outputs.reshape(-1, 1)


def channels(outputs):
    return outputs.flatten(2).flatten(0, 1)


KINDS = {
    "Dropout": Kind(lambda: nn.Dropout(0.1), units=everything),
    "Dropout in place": Kind(lambda: nn.Dropout(0.1, inplace=True), units=everything),
    "Dropout1d": Kind(lambda: nn.Dropout1d(0.1), (ROWS, 2, 3), channels),
    "Dropout1d unbatched": Kind(lambda: nn.Dropout1d(0.1)),
    "Dropout2d": Kind(lambda: nn.Dropout2d(0.1), (ROWS, 2, 3, 2), channels),
    "Dropout3d": Kind(lambda: nn.Dropout3d(0.1), (ROWS, 2, 3, 2, 2), channels),
    "Dropout3d unbatched": Kind(lambda: nn.Dropout3d(0.1), (ROWS, 2, 3, 2)),
    "AlphaDropout": Kind(lambda: nn.AlphaDropout(0.1), units=everything, keeps_mean=False),
    "FeatureAlphaDropout": Kind(lambda: nn.FeatureAlphaDropout(0.1), (ROWS, 2, 3), channels, keeps_mean=False),
    "DropPath": Kind(lambda: DropPath(0.1)),
    "DropPath of rate None": Kind(lambda: DropPath(None)),
    "DropPath without scale": Kind(lambda: DropPath(0.1, scale_by_keep=False), keeps_mean=False),
    "StochasticDepth": Kind(lambda: StochasticDepth(0.1, "row")),
    "MultiheadAttention": Kind(Attention),
    "LSTM": Kind(lambda: Recurrent(nn.LSTM), keeps_mean=False),
    "GRU": Kind(lambda: Recurrent(nn.GRU), keeps_mean=False),
    "RNN": Kind(lambda: Recurrent(nn.RNN), keeps_mean=False),
    "attention of Hugging Face": Kind(HfAttention),
    "fused attention of timm": Kind(FusedAttention),
    "attribute of the user's": Kind(Noise, attribute="noise_rate"),
}


class Body(nn.Module):
    """A layer that multiplies with 1, so that there is something to train, and the module in question."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.part = part

    def forward(self, inputs):
        return self.part(inputs * self.gain)


class Module(LightningModule):
    """Keeps what its body returned at every step; `loss` is 0 and trains nothing."""

    def __init__(self, part: nn.Module, shape: tuple[int, ...] = (ROWS, 2)) -> None:
        super().__init__()
        self.body = Body(part)
        self.shape = shape
        self.outputs: list[Tensor] = []
        self.evaluated: list[Tensor] = []

    def training_step(self, batch, batch_idx):
        outputs = self.body(torch.ones(self.shape))
        self.outputs.append(outputs.detach().clone())
        return 0.0 * outputs.sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(self.body(torch.ones(self.shape)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def ticks(count: int = 7) -> DataLoader[tuple[Tensor, ...]]:
    """Return `count` batches that nobody looks at."""
    return DataLoader(TensorDataset(torch.zeros(count, 1)), batch_size=1)
