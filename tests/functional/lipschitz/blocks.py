"""Blocks of published networks, small, as their authors and timm write them."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class ConvNeXt(nn.Module):
    """Depthwise convolution, normalization of channels, two layers of each pixel, a layer scale, and drop path."""

    def __init__(self, width):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width, eps=0.1)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma, self.drop = nn.Parameter(torch.rand(width)), nn.Dropout(0.3)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + self.drop(y.permute(0, 3, 1, 2))


class BasicBlock(nn.Module):
    """Of ResNet, with a stride and a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, 3, 3, 2, 1, bias=False), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.shortcut = nn.Conv2d(width, 3, 1, 2, bias=False)

    def forward(self, x):
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        y = self.norms[1](self.second(y))
        y += self.norms[2](self.shortcut(x))
        return F.relu(y)


class InvertedResidual(nn.Module):
    """Of MobileNetV2, with the activation of V3."""

    def __init__(self, width):
        super().__init__()
        inner = 2 * width
        self.layers = nn.Sequential(
            *(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner), nn.Hardswish()),
            *(nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner), nn.ReLU6()),
            *(nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return x + self.layers(x)


class SqueezeExcite(nn.Module):
    """Of SENet: a product of values that depend on the input."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 1, 1), nn.Conv2d(1, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class PoolFormer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.pool = nn.GroupNorm(1, width, eps=0.1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x):
        y = self.norm(x)
        return x + self.scale[:, None, None] * (self.pool(y) - y)


class DenseLayer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class UNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.inner = nn.Conv2d(width, 3, 2, 2), nn.Conv2d(3, 2, 1)
        self.up, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(width + 2, 1, 1)

    def forward(self, x):
        y = self.up(F.silu(self.inner(F.silu(self.down(x)))))
        y = F.interpolate(y, size=x.shape[2:], mode="bicubic")
        return self.last(torch.cat([x, y], 1))


class FourierOperator(nn.Module):
    """Of FNO: channels are mixed at low frequencies."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, 2, 2, dtype=torch.complex64) / width)
        self.skip = nn.Conv2d(width, width, 1)

    def forward(self, x):
        spectrum = torch.fft.rfft2(x, norm="ortho")
        mixed = torch.zeros(spectrum.shape, dtype=spectrum.dtype, device=spectrum.device)
        mixed[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :2, :2], self.weight.to(spectrum.dtype))
        return F.gelu(torch.fft.irfft2(mixed, s=x.shape[2:], norm="ortho") + self.skip(x))


class MinibatchDeviation(nn.Module):
    """Of ProGAN: the mean deviation over the batch is one more channel."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width + 1, 2, 1)

    def forward(self, x):
        deviation = x.std(0, correction=0).mean()
        return F.leaky_relu(self.conv(torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], 1)), 0.2)


class SuperResolution(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, 4, 3, padding=1, padding_mode="replicate")

    def forward(self, x):
        return F.pixel_shuffle(self.conv(x), 2) + F.interpolate(x[:, :1], scale_factor=2, mode="bilinear")


class FNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width, eps=0.2), nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x):
        x = self.norm(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
        return x + self.down(F.gelu(self.up(x)))


class ResMLP(nn.Module):
    """Affine layers by `addcmul`, patches mixed by one matrix."""

    def __init__(self, width, count):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.rand(1, 1, width)), nn.Parameter(torch.randn(1, 1, width))
        self.patches, self.features = nn.Linear(count, count), nn.Linear(width, width)

    def forward(self, x):
        y = torch.addcmul(self.beta, self.alpha, x)
        x = x + self.alpha * self.patches(y.transpose(1, 2)).transpose(1, 2)
        return x + F.gelu(self.features(torch.addcmul(self.beta, self.alpha, x)))


class Windows(nn.Module):
    """The shifted windows of Swin without their attention."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(2, 2)

    def forward(self, x):
        batch, count, width = x.shape
        windows = x.roll(-1, 1).view(batch, count // 2, 2, width)
        mixed = self.mix(windows.permute(0, 1, 3, 2)).permute(0, 1, 3, 2)
        return x + mixed.reshape(batch, count, width).roll(1, 1)


class GatedUnit(nn.Module):
    """Of gMLP: a product of two halves."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4)

    def forward(self, x):
        first, second = self.up(x).chunk(2, -1)
        return first * second


class Attention(nn.Module):
    """Without a normalization before it: no Lipschitz constant."""

    def __init__(self, width):
        super().__init__()
        self.project = nn.Linear(width, 3 * width)

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        return x + F.scaled_dot_product_attention(query, key, value)


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer, self.head = nn.RNN(width, 3, 2, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class PointNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.point, self.head = nn.Conv1d(width, 5, 1), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(F.relu(self.point(x.transpose(1, 2))).max(2).values)


class GraphConvolution(nn.Module):
    """Messages along the edges of a fixed graph, added or averaged where they arrive."""

    def __init__(self, width, count):
        super().__init__()
        self.layer = nn.Linear(width, 3)
        edges = torch.randint(count, (2, 2 * count))
        self.register_buffer("edges", edges)

    def forward(self, x):
        source, target = self.edges
        messages = self.layer(x).index_select(1, source)
        added = torch.zeros(len(x), x.shape[1], 3).to(x)
        added = added.index_add(1, target, messages)
        places = target[None, :, None].expand_as(messages)
        return F.relu(added) + torch.zeros_like(added).scatter_reduce(1, places, messages, "mean", include_self=False)


IMAGES = {
    "ConvNeXt block": ConvNeXt,
    "ResNet block": BasicBlock,
    "MobileNet block": InvertedResidual,
    "squeeze and excitation": SqueezeExcite,
    "PoolFormer block": PoolFormer,
    "DenseNet layer": DenseLayer,
    "U-Net": UNet,
    "Fourier operator": FourierOperator,
    "minibatch deviation": MinibatchDeviation,
    "super resolution": SuperResolution,
}
TOKENS = {
    "FNet block": FNet,
    "Swin windows": Windows,
    "gMLP unit": GatedUnit,
    "attention": Attention,
    "RNN classifier": Recurrent,
    "PointNet": PointNet,
}
WITH_COUNT = {"ResMLP block": ResMLP, "graph convolution": GraphConvolution}
NAMES = [*IMAGES, *TOKENS, *WITH_COUNT]


def block(name, random):
    """Return a block of random width with random weights and statistics, and the shape of its input."""
    width = random.randint(2, 4)
    shape = (random.randint(1, 2), width, 4, 4) if name in IMAGES else (random.randint(1, 2), 4, width)
    with torch.random.fork_rng():
        torch.manual_seed(random.randrange(1 << 30))
        kind = {**IMAGES, **TOKENS, **WITH_COUNT}[name]
        network = kind(width, shape[1]) if name in WITH_COUNT else kind(width)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight), part.running_var.uniform_(0.5, 2), part.running_mean.normal_()
    return network.eval(), shape
