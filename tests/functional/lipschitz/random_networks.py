"""Random small networks out of a grammar of all that the walk knows, and of some things that it does not.

`python -m tests.functional.lipschitz.random_networks 1000` prints a table of what bounds they have.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz import blocks
from tests.functional.lipschitz.calls import Calls
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at

# Larger values than these make Jacobians slow, and a network is cut there.
LARGEST = 96
VECTOR, TOKENS, IMAGES = 2, 3, 4


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Joined(nn.Module):
    """Two branches, and what makes one tensor of their results."""

    def __init__(self, first, second, join):
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x):
        return self.join(self.first(x), self.second(x))


class Outputs(nn.Module):
    """The outputs of a recurrent layer without its last state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


@dataclass
class Grammar:
    """Draws networks; `used` has the names of the parts of the last one."""

    random: Random
    used: list[str] = field(default_factory=list)

    def constant(self, *shape):
        return torch.randn(
            shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.random.random_seed())
        )

    def network(self, x):
        """Return a network for inputs like x."""
        self.used = []
        return self.sequence(x, self.random.randint(2, 4), depth=2)

    def sequence(self, x, length, depth):
        parts = []
        for _ in range(length):
            before = len(self.used)
            part = self.part(x, depth)
            y = part(x)
            if not 0 < y.numel() <= LARGEST:
                del self.used[before:]
                continue
            parts.append(part)
            x = y
        return nn.Sequential(*parts)

    def part(self, x, depth):
        kind = self.random.choice(["residual", "joined", *["plain"] * 4]) if depth else "plain"
        if kind == "residual":
            inner = self.sequence(x, 2, depth - 1)
            if inner(x).shape == x.shape:
                return Residual(inner)
            return inner
        if kind == "joined":
            first, second = self.sequence(x, 1, depth - 1), self.sequence(x, 2, depth - 1)
            if first(x).shape == second(x).shape:
                return Joined(first, second, self.choose(JOINS))
            return Joined(first, second, lambda a, b: torch.cat([a.flatten(), b.flatten()])[None])
        rank = min(x.ndim, IMAGES)
        known = {**ANY, **BY_RANK.get(rank, {})}
        return self.choose(known)(self, x)

    def choose(self, options):
        name = self.random.choice(sorted(options))
        self.used.append(name)
        return options[name]


class Draws(Random):
    """Random numbers, and seeds of torch's."""

    def random_seed(self):
        return self.randrange(1 << 30)


def fixed(function: Callable):
    """Return a part without constants of its own."""
    return lambda grammar, x: Calls(function)


def with_constant(shape: Callable, function: Callable):
    """Return a part with one constant, whose shape depends on the input's."""

    def build(grammar, x):
        constant = grammar.constant(*shape(x))
        return Calls(lambda x: function(x, constant))

    return build


def layer(make: Callable):
    """Return a layer with weights of torch's, made from the grammar's seed."""

    def build(grammar, x):
        with torch.random.fork_rng():
            torch.manual_seed(grammar.random.random_seed())
            return make(x).double().eval()

    return build


def drawn(grammar, x, high):
    return torch.tensor([grammar.random.randrange(high) for _ in range(x.shape[1])])


JOINS = {
    "add": torch.add,
    "sub": lambda a, b: torch.sub(a, b, alpha=0.5),
    "cat": lambda a, b: torch.cat([a, b], -1),
    "stack": lambda a, b: torch.stack([a, b], 1).flatten(1),
    "maximum": torch.maximum,
    "hypot": lambda a, b: torch.hypot(a, b + 0.1),
    "logaddexp": torch.logaddexp,
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "where": lambda a, b: torch.where(torch.arange(a.shape[-1]) % 2 > 0, a, b),
    "product": lambda a, b: a * b,
    "l1_loss": lambda a, b: F.l1_loss(a, b, reduction="none"),
}
ANY = {
    **{
        f"{function.__name__}": fixed(function)
        for function in (torch.relu, torch.tanh, torch.sigmoid, torch.sin, torch.erf, torch.abs, torch.atan)
    },
    **{
        f"F.{function.__name__}": fixed(function)
        for function in (F.gelu, F.silu, F.mish, F.elu, F.selu, F.softplus, F.hardswish, F.leaky_relu, F.softsign)
    },
    "clamp": fixed(lambda x: x.clamp(-0.5, 2)),
    "scale": fixed(lambda x: 1.5 * x - 0.3),
    "softmax": fixed(lambda x: x.softmax(-1)),
    "log_softmax": fixed(lambda x: x.log_softmax(-1)),
    "logsumexp": fixed(lambda x: x.logsumexp(-1, keepdim=True)),
    "normalize": fixed(lambda x: F.normalize(x, dim=-1, eps=0.5)),
    "rms norm by hand": fixed(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.2)),
    "layer norm by hand": fixed(lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, True) + 0.2).sqrt()),
    "clipped rows": fixed(lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(0.7)),
    "no norm by hand": fixed(lambda x: x / (x.flip(-1).norm(dim=-1, keepdim=True)[:, :1] + 0.5)),
    "mean": fixed(lambda x: x - x.mean(-1, keepdim=True)),
    "sum": fixed(lambda x: x.sum(-1, keepdim=True).expand(x.shape)),
    "norm": fixed(lambda x: x.norm(dim=-1, keepdim=True)),
    "std": fixed(lambda x: x.std(-1, keepdim=True, correction=0)),
    "amax": fixed(lambda x: x.amax(-1, keepdim=True)),
    "sort": fixed(lambda x: x.sort(-1).values),
    "topk": fixed(lambda x: x.topk(min(2, x.shape[-1]), -1).values),
    "flip and roll": fixed(lambda x: x.flip(-1).roll(1, -1)),
    "slices": fixed(lambda x: x[..., ::2]),
    "repeat": fixed(lambda x: x.repeat_interleave(2, -1)),
    "cumsum": fixed(lambda x: x.cumsum(-1)),
    "logcumsumexp": fixed(lambda x: x.logcumsumexp(-1)),
    "cummax": fixed(lambda x: x.cummax(-1).values),
    "diff": fixed(lambda x: x.diff(dim=-1, prepend=x[..., :1])),
    "fft": fixed(lambda x: torch.cat([(z := torch.fft.rfft(x, norm="ortho")).real, z.imag], -1)),
    "fft real": fixed(lambda x: torch.fft.fft(x).real.clone()),
    "irfft": fixed(lambda x: torch.fft.irfft(torch.complex(x, x.sin()), x.shape[-1] + 1)),
    "pad": fixed(lambda x: F.pad(x, (1, 0))),
    "trapezoid": fixed(lambda x: torch.trapezoid(x, dim=-1)[..., None]),
    "quantile": fixed(lambda x: x.quantile(0.4, dim=-1, keepdim=True)),
    "in place": fixed(lambda x: x.clone().mul_(0.7).add_(x).relu_()),
    "set": fixed(lambda x: torch.zeros_like(x).index_copy_(-1, torch.arange(x.shape[-1]).flip(0), x)),
    "flatten": fixed(lambda x: x.reshape(1, -1)),
    "square": fixed(torch.square),
    "gain": with_constant(lambda x: x.shape[-1:], torch.mul),
    "shift": with_constant(lambda x: x.shape, lambda x, c: c - x),
    "addcmul": with_constant(lambda x: x.shape[-1:], lambda x, c: torch.addcmul(c, c, x)),
    "divide": with_constant(lambda x: x.shape[-1:], lambda x, c: x / (1 + c.abs())),
    "matmul": with_constant(lambda x: (x.shape[-1], 4), lambda x, c: x @ c),
    "einsum": with_constant(lambda x: (3, x.shape[-1]), lambda x, c: torch.einsum("...i,oi->...o", x, c)),
    "tensordot": with_constant(lambda x: (x.shape[-1], 3), lambda x, c: torch.tensordot(x, c, 1)),
    "inner": with_constant(lambda x: (4, x.shape[-1]), lambda x, c: torch.inner(x, c)),
    "prelu": with_constant(lambda x: (1,), F.prelu),
    "dist": with_constant(lambda x: x.shape[-1:], lambda x, c: F.pairwise_distance(x, c)[..., None]),
    "cdist": with_constant(lambda x: (3, x.shape[-1]), lambda x, c: torch.cdist(x.reshape(-1, x.shape[-1]), c)),
    "kron": with_constant(lambda x: (1, 2), torch.kron),
    "linear": layer(lambda x: nn.Linear(x.shape[-1], 4)),
    "layer norm": layer(lambda x: nn.LayerNorm(x.shape[-1], eps=0.3)),
    "rms norm": layer(lambda x: nn.RMSNorm(x.shape[-1], eps=0.3)),
    "dropout": layer(lambda x: nn.Dropout(0.5)),
}
BY_RANK = {
    VECTOR: {
        "scatter_add": lambda grammar, x: (
            lambda index: Calls(lambda x: torch.zeros_like(x).scatter_add(1, index.expand(x.shape), x))
        )(drawn(grammar, x, x.shape[1])),
        "index_add": lambda grammar, x: (lambda index: Calls(lambda x: x.index_add(1, index, x)))(
            drawn(grammar, x, x.shape[1])
        ),
        "gather": lambda grammar, x: (lambda index: Calls(lambda x: x.gather(1, index.expand(x.shape))))(
            drawn(grammar, x, x.shape[1])
        ),
        "addmm": with_constant(lambda x: (x.shape[1], 3), lambda x, c: torch.addmm(c[0], x, c, alpha=0.5)),
        "outer": with_constant(lambda x: (2,), lambda x, c: torch.outer(c, x.flatten())),
        "bilinear": with_constant(
            lambda x: (3, x.shape[1], 2), lambda x, c: F.bilinear(x, c[0, 0].expand(len(x), 2), c)
        ),
        "cross entropy": fixed(lambda x: F.cross_entropy(x, torch.zeros(len(x)).long(), reduction="none")[None]),
        "tokens": fixed(lambda x: x.unflatten(1, (1, -1))),
        "batch norm": layer(lambda x: trained(nn.BatchNorm1d(x.shape[1]))),
        "block": layer(
            lambda x: nn.Sequential(nn.Linear(x.shape[1], 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        ),
    },
    TOKENS: {
        "mix tokens": with_constant(lambda x: (x.shape[1], 3), lambda x, c: torch.einsum("bnd,nm->bmd", x, c)),
        "batched product": with_constant(lambda x: (len(x), x.shape[-1], 3), torch.bmm),
        "transpose": fixed(lambda x: x.transpose(1, 2)),
        "pool tokens": fixed(lambda x: x.amax(1)),
        "linear resize": fixed(lambda x: F.interpolate(x, scale_factor=1.5, mode="linear")),
        "fourier mixing": fixed(lambda x: torch.fft.fft2(x, norm="ortho").real),
        "conv": layer(
            lambda x: nn.Conv1d(x.shape[1], 3, 3, padding=1, padding_mode="reflect" if x.shape[2] > 1 else "zeros")
        ),
        "transposed conv": layer(lambda x: nn.ConvTranspose1d(x.shape[1], 2, 3, stride=2)),
        "group norm": layer(lambda x: nn.GroupNorm(1, x.shape[1], eps=0.3)),
        "tanh rnn": layer(lambda x: Outputs(nn.RNN(x.shape[2], 3, batch_first=True))),
        "relu rnn": layer(lambda x: Outputs(nn.RNN(x.shape[2], 2, 2, nonlinearity="relu", bidirectional=True))),
        "max pool": layer(lambda x: nn.MaxPool1d(2, 1, padding=1)),
        "mixer": layer(
            lambda x: nn.Sequential(
                nn.LayerNorm(x.shape[2], eps=0.5),
                Residual(nn.Sequential(nn.Linear(x.shape[2], 5), nn.GELU(), nn.Linear(5, x.shape[2]))),
            )
        ),
        "gru": layer(lambda x: Outputs(nn.GRU(x.shape[2], 3))),
        "lstm": layer(lambda x: Outputs(nn.LSTM(x.shape[2], 2, batch_first=True))),
    },
    IMAGES: {
        "convolution": layer(lambda x: nn.Conv2d(x.shape[1], 2, 3, stride=2, padding=1)),
        "depthwise": layer(lambda x: nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1, groups=x.shape[1])),
        "dilated": layer(
            lambda x: nn.Conv2d(
                x.shape[1], 2, 2, padding=1, dilation=2, padding_mode="circular" if min(x.shape[2:]) > 1 else "zeros"
            )
        ),
        "conv and norm": layer(
            lambda x: nn.Sequential(nn.Conv2d(x.shape[1], 2, 1), trained(nn.BatchNorm2d(2)), nn.ReLU())
        ),
        "average": layer(lambda x: nn.AvgPool2d(2, 1, padding=1)),
        "max": layer(lambda x: nn.MaxPool2d(2, 1, padding=1)),
        "adaptive": layer(lambda x: nn.AdaptiveAvgPool2d(2)),
        "instance norm": fixed(lambda x: F.instance_norm(x, eps=0.4) if x[0, 0].numel() > 1 else x),
        "nearest": fixed(lambda x: F.interpolate(x, scale_factor=(1, 2))),
        "bilinear resize": fixed(lambda x: F.interpolate(x, size=(3, 2), mode="bilinear", align_corners=True)),
        "bicubic resize": fixed(lambda x: F.interpolate(x, size=(2, 3), mode="bicubic")),
        "area": fixed(lambda x: F.interpolate(x, size=(2, 2), mode="area")),
        "unfold": fixed(lambda x: F.unfold(x, 2, padding=1)),
        "replicate": fixed(lambda x: F.pad(x, (1, 0, 0, 1), mode="replicate")),
        "spectral layer": with_constant(
            lambda x: x.shape[1:2],
            lambda x, c: torch.fft.irfft2(torch.fft.rfft2(x) * c[:, None, None], s=x.shape[-2:]),
        ),
        "grid": with_constant(
            lambda x: (len(x), 2, 3, 2), lambda x, c: F.grid_sample(x, c.tanh(), align_corners=False)
        ),
        "global pool": fixed(lambda x: x.mean((2, 3))),
        "squeeze and excitation": fixed(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    },
}
# Parts without a bound, unless one before them bounds how large their input gets.
WITHOUT = {"product", "square", "squeeze and excitation", "gMLP unit"}
BOUNDED = {
    *("clamp", "tanh", "sigmoid", "F.softsign", "softmax", "layer norm", "rms norm", "group norm", "mixer"),
    *("rms norm by hand", "layer norm by hand", "clipped rows"),
}
SCALES = (1e-3, 0.1, 1.0, 1.0, 3.0, 10.0)
SHAPES = [(2, 6), (3, 4), (2, 3, 4), (1, 5, 3), (1, 2, 4, 4), (2, 1, 3, 5)]


def trained(norm):
    """Return a normalization with statistics and gains of its own."""
    with torch.no_grad():
        norm.running_var.uniform_(0.5, 2), norm.running_mean.normal_(), norm.weight.normal_(), norm.bias.normal_()
    return norm


@dataclass
class Finding:
    """What is known of one random network."""

    parts: list[str]
    bound: float
    truth: float
    reasons: tuple[tuple[str, str], ...]

    @property
    def kind(self):
        """Return in which column of the table it counts."""
        if not self.bound < float("inf"):
            return "infinite with reason" if self.reasons else "infinite without reason"
        return "violation" if self.truth > self.bound * (1 + 1e-9) else "finite"


def drawn_network(seed):
    """Return a network, an input, and the names of its parts: every fourth is a block of a published network."""
    draws = Draws(seed)
    grammar = Grammar(draws)
    if seed % 4 == 0:
        name = blocks.NAMES[seed // 4 % len(blocks.NAMES)]
        network, shape = blocks.block(name, draws)
        return network.double(), grammar.constant(*shape), [name]
    x = grammar.constant(*draws.choice(SHAPES))
    return grammar.network(x).eval(), x, grammar.used


def finding(seed):
    """Draw a network, and compare its bound with the norms of exact Jacobians near and far from 0."""
    network, x, parts = drawn_network(seed)
    report = lipschitz_bound(network, x)
    function, start = flat_function(network, [x])
    generator = torch.Generator().manual_seed(seed)
    points = [scale * torch.randn(len(start), dtype=torch.float64, generator=generator) for scale in SCALES]
    norms = [jacobian_norm_at(function, point) for point in (start, *points)]
    return Finding(parts, report.value, max(norms), report.unbounded)


def table(findings):
    """Return lines: how many networks have which kind of bound, in all and by part."""
    kinds = ["finite", "infinite with reason", "infinite without reason", "violation"]
    rows = {"all networks": Counter(each.kind for each in findings)}
    for each in findings:
        for part in set(each.parts):
            rows.setdefault(part, Counter())[each.kind] += 1
    yield f"{'part':<24}" + "".join(f"{kind:>25}" for kind in kinds)
    for name in ["all networks", *sorted(set(rows) - {"all networks"})]:
        yield f"{name:<24}" + "".join(f"{rows[name][kind]:>25}" for kind in kinds)


if __name__ == "__main__":
    print(*table([finding(seed) for seed in range(int(sys.argv[1]))]), sep="\n")
