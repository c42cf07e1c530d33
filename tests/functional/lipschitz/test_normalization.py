"""Normalizations written by hand: the bound is that of the formula, and nothing else is taken for a normalization."""

import math
from random import Random

import numpy as np
import pytest
import torch

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import constant, network_of
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at, largest_jacobian

WIDTH, EPS = 4, 0.09
GAMMA = constant(3, WIDTH)[2]


def mean_square(x, dim=-1):
    return x.pow(2).mean(dim, keepdim=True)


def centered(x, dim=-1):
    return x - x.mean(dim, keepdim=True)


def by_var_mean(x):
    variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + EPS)


def in_place(x):
    scale = x.square().sum(-1, keepdim=True).add_(EPS).sqrt()
    return x.clone().div_(scale)


def llama(x):
    input_dtype = x.dtype
    x = x.to(torch.float64)
    x = x * torch.rsqrt(mean_square(x) + EPS)
    return GAMMA * x.to(input_dtype)


# The function, its slope at 0 where that is largest, and the greatest length of a result.
LARGEST = float(np.abs(GAMMA.numpy()).max())
ROOT = math.sqrt(WIDTH)
NORMALIZATIONS = {
    "LLaMA": (llama, LARGEST / 0.3, ROOT * LARGEST),
    "T5": (lambda x: GAMMA * (x * torch.rsqrt(mean_square(x.to(torch.float64)) + EPS)), LARGEST / 0.3, ROOT * LARGEST),
    "Gemma": (lambda x: x * torch.pow(mean_square(x) + EPS, -0.5) * 2, 2 / 0.3, 2 * ROOT),
    "gain inside": (lambda x: x * (torch.rsqrt(mean_square(x) + EPS) * GAMMA), LARGEST / 0.3, ROOT * LARGEST),
    "gain before": (lambda x: (GAMMA * x) / (mean_square(x) + EPS).sqrt(), LARGEST / 0.3, ROOT * LARGEST),
    "norm and eps": (lambda x: x / (x.norm(dim=-1, keepdim=True) * WIDTH**-0.5 + EPS), 1 / EPS, ROOT),
    "limited norm": (lambda x: x / x.norm(2, -1, keepdim=True).clamp_min(0.2), 5, 1),
    "limited square": (lambda x: x * (x * x).sum(-1, keepdim=True).clamp(min=EPS).rsqrt(), 1 / 0.3, 1),
    "maximum": (lambda x: x / torch.maximum(x.norm(dim=-1, keepdim=True), torch.tensor(0.2)), 5, 1),
    "without keepdim": (lambda x: x / torch.linalg.vector_norm(x, dim=-1)[..., None].clamp(0.2), 5, 1),
    "unsqueezed": (lambda x: x / torch.linalg.norm(x, dim=-1).unsqueeze(-1).clamp(0.2).expand_as(x), 5, 1),
    "clipped": (lambda x: x * (2 / (x.norm(dim=-1, keepdim=True) + EPS)).clamp_max(1.0), 1, 2),
    "ball": (lambda x: x / x.norm().clamp(min=1.0), 1, 1),
    "rational": (lambda x: x / (1 + x.square().sum(-1, keepdim=True)), 1, 1),
    "in place": (in_place, 1 / 0.3, 1),
    "mean and variance": (lambda x: centered(x) / (x.var(-1, False, True) + EPS).sqrt(), 1 / 0.3, ROOT),
    "mean square less squared mean": (
        lambda x: centered(x) * (mean_square(x) - x.mean(-1, keepdim=True) ** 2 + EPS).rsqrt(),
        1 / 0.3,
        ROOT,
    ),
    "Annotated Transformer": (
        lambda x: GAMMA * centered(x) / (x.std(-1, keepdim=True) + EPS) + GAMMA,
        LARGEST / EPS,
        math.sqrt(WIDTH - 1) * LARGEST + float(np.linalg.norm(GAMMA.numpy())),
    ),
    "channels": (lambda x: centered(x, 1) / torch.sqrt(mean_square(centered(x, 1), 1) + EPS), 1 / 0.3, math.sqrt(3)),
    "var_mean": (by_var_mean, 1 / 0.3, math.sqrt(3)),
    "whole": (lambda x: x / (x.pow(2).mean((1, 2), keepdim=True) + EPS) ** 0.5, 1 / 0.3, math.sqrt(3 * WIDTH)),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_normalization_by_hand_has_its_constant_and_attains_it(name):
    function, slope, _ = NORMALIZATIONS[name]
    network, x = network_of(function), constant(2, 3, WIDTH)
    report = lipschitz_bound(network, x)
    assert report.unbounded == ()
    assert report.value == pytest.approx(slope, rel=1e-6)
    near_zero = [1e-4 * constant(*x.shape) * scale for scale in (1, -3)]
    found = max(largest_jacobian(network, [each], points=12, seed=3) for each in near_zero)
    assert 0.6 * slope < found <= report.value


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_its_results_are_known_to_be_bounded(name):
    function, slope, length = NORMALIZATIONS[name]
    network, x = network_of(lambda x: (function(x) @ constant(WIDTH, 1)).sigmoid() * function(x)), constant(1, 3, WIDTH)
    report = lipschitz_bound(network, x)
    assert report.unbounded == ()
    # No entry is larger than the length, and a product with a sigmoid changes by both.
    weight = float(np.linalg.norm(constant(WIDTH, 1).numpy()))
    assert report.value <= (slope + slope * weight / 4 * ROOT * max(length, math.sqrt(3) * ROOT)) * (1 + 1e-6)
    assert largest_jacobian(network, [x], points=6) <= report.value


def test_a_steep_power_shrinks_rows_faster_than_it_shrinks_near_zero():
    network, x = network_of(lambda x: x / x.norm().clamp_min(1.0) ** 4), torch.tensor([1.0 + 1e-9, 0]).double()
    truth = jacobian_norm_at(*flat_function(network, [x]))
    assert lipschitz_bound(network, x).value == pytest.approx(truth, rel=1e-6) == 3


def test_the_length_of_rows_is_as_steep_as_a_distance_and_a_variance_stays_a_square():
    x = constant(2, 3, WIDTH)
    for function, slope in (
        (lambda x: (x.pow(2).sum(-1) + EPS).sqrt(), 1),
        (lambda x: torch.sqrt(x.var(0, unbiased=False) + EPS), 1 / math.sqrt(2)),
        (lambda x: (mean_square(x) + EPS).rsqrt(), 0.5 / EPS),
    ):
        report = lipschitz_bound(network_of(function), x)
        assert report.value == pytest.approx(slope, rel=1e-6)
        assert largest_jacobian(network_of(function), [x]) <= report.value
    report = lipschitz_bound(network_of(lambda x: (x / (x.norm() + 1), x.var(-1) + EPS)), x)
    assert (report.value, [name for name, _ in report.unbounded]) == (math.inf, ["var"])


def changed_before(x):
    y = x.clone()
    scale = (mean_square(y) + EPS).rsqrt()
    y.mul_(x.roll(1, -1))
    return y * scale


def changed_view(x):
    y = x.clone()
    norm = y.norm(dim=-1, keepdim=True)
    scale = norm.view(norm.shape) + EPS
    norm.mul_(-1).add_(EPS)
    return y / norm + y / scale


SQUARE = {
    "other rows": lambda x: x * (x.pow(2).mean(-1) + EPS).rsqrt(),
    "other rows divided": lambda x: x / x.norm(dim=-1).clamp_min(EPS),
    "rows for columns": lambda x: x / x.norm(dim=-1, keepdim=True).reshape(1, -1).clamp_min(EPS),
    "transposed": lambda x: x / (x.mT.norm(dim=-1, keepdim=True) + EPS),
    "flipped": lambda x: x / (x.flip(0).norm(dim=-1, keepdim=True) + EPS),
    "of others": lambda x: (x + 1) / (x.norm(dim=-1, keepdim=True) + EPS),
    "a part": lambda x: x / (x[:, :1].norm(dim=-1, keepdim=True) + EPS),
    "indexed": lambda x: x / (x.norm(dim=-1, keepdim=True)[[1, 0, 2]] + EPS),
    "means of others": lambda x: (x - x.mean(0, keepdim=True)) / (x.var(-1, keepdim=True) + EPS).sqrt(),
    "not centered": lambda x: x / (x.var(-1, keepdim=True) + EPS).sqrt(),
    "less a mean of means": lambda x: (x - x.mean(-1)) / (x.std(-1, keepdim=True) + EPS),
    "fourth powers": lambda x: x / (x.pow(4).mean(-1, keepdim=True) + EPS).sqrt(),
    "cubes": lambda x: x / (x.pow(3).sum(-1, keepdim=True) + 1),
    "a smaller constant": lambda x: x / (x.norm(dim=-1, keepdim=True) - 0.1),
    "a constant of the row": lambda x: x / (x.norm(dim=-1, keepdim=True) + constant(3, 1)),
    "limited above": lambda x: x / (x.norm(dim=-1, keepdim=True) + EPS).clamp(max=0.5),
    "of no constant": lambda x: x / x.norm(dim=-1, keepdim=True),
    "too small a power": lambda x: x * (mean_square(x) + EPS).pow(0.25),
    "another norm": lambda x: x / (x.norm(p=1, dim=-1, keepdim=True) + EPS),
    "the spectral norm": lambda x: x / (torch.linalg.norm(x, 2).expand(3, 1) + EPS),
    "changed in place": changed_before,
    "its number changed": changed_view,
    "weighted": lambda x: x / ((x.square() * constant(3)).sum(-1, keepdim=True) + EPS).sqrt(),
    "sum of squares less squared mean": lambda x: (
        centered(x) / (x.pow(2).sum(-1, keepdim=True) - x.mean(-1, keepdim=True).square() + EPS).sqrt()
    ),
    "mean square less squared mean of others": lambda x: (
        centered(x) / (mean_square(x) - x.flip(0).mean(-1, keepdim=True).square() + 9).sqrt()
    ),
    "mean square less squared mean of columns": lambda x: (
        centered(x) / (mean_square(x) - x.mean(0)[:, None].square() + 9).sqrt()
    ),
    "mean square less half a squared mean": lambda x: (
        centered(x) / (mean_square(x) - 0.5 * x.mean(-1, keepdim=True).square() + EPS).sqrt()
    ),
    "squared mean less mean square": lambda x: (
        centered(x) / (x.mean(-1, keepdim=True).square() - mean_square(x) + 9).sqrt()
    ),
    "products": lambda x: x / ((x * x.roll(1, -1)).sum(-1, keepdim=True) + EPS).sqrt(),
}


@pytest.mark.parametrize("name", SQUARE)
def test_what_only_looks_like_a_normalization_is_not_taken_for_one(name):
    network, x = network_of(SQUARE[name]), constant(3, 3)
    report = lipschitz_bound(network, x)
    assert report.value == math.inf
    assert report.unbounded != ()


def random_scale(x, draws):
    """Return rows of x, which may be changed by chance, times a number that a random formula gives for each row."""
    dim = draws.choice([-1, 0, (0, 1)])
    rows = draws.choice([x, centered(x, dim)])
    size, power = draws.choice(
        [
            (rows.norm(dim=dim, keepdim=True), 1),
            (mean_square(rows, dim), 2),
            ((rows * rows).sum(dim, keepdim=True), 2),
            (rows.var(dim, unbiased=draws.random() < 0.5, keepdim=True), 2),
            (rows.std(dim, unbiased=False, keepdim=True), 1),
        ]
    )
    size = size + draws.choice([0.1, 1.0, 0.3, -0.2])
    steps = {
        "add": lambda size: size + draws.choice([0.1, 0.0]),
        "scale": lambda size: size * draws.choice([0.3, 2.0, 2.0, -1.5]),
        "raise": lambda size: size ** draws.choice([2, -1, 0.7, 1]),
        "limit": lambda size: size.clamp(*draws.choice([(0.2, None), (None, 0.7), (-1.0, None), (0.1, 2.0)])),
        "shape": lambda size: size.flatten().view(size.shape),
    }
    for _ in range(draws.randint(0, 2)):
        size = steps[draws.choice(sorted(steps))](size)
    size = size ** draws.choice([1 / power, -1 / power])
    for _ in range(draws.randint(0, 2)):
        size = steps[draws.choice(sorted(steps))](size)
    rows = draws.choice([rows, rows, rows, rows * constant(x.shape[-1]), rows.flip(-1), x])
    return rows * size if draws.random() < 0.5 else rows / size


@pytest.mark.parametrize("first", range(0, 160, 40))
def test_no_jacobian_of_a_random_scale_of_rows_is_above_its_bound(first):
    finite = 0
    for seed in range(first, first + 40):
        network, x = network_of(lambda x, seed=seed: random_scale(x, Random(seed))), constant(2, 3)
        bound = lipschitz_bound(network, x).value
        finite += bound < math.inf
        function, start = flat_function(network, [x])
        points = (10.0**exponent * factor * start for exponent in (-4, -1, -0.3, 0.3, 1) for factor in (1, start))
        for point in points:
            jacobian = torch.autograd.functional.jacobian(function, point)
            # Some formulas are not defined everywhere.
            if bool(jacobian.isfinite().all()):
                assert torch.linalg.matrix_norm(jacobian, 2).item() <= bound * (1 + 1e-9), seed
    assert 2 < finite < 35


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["Llama", "Gemma", "T5"])
def test_pre_norm_language_models_have_a_bound(kind, implementation):
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 1, "vocab_size": 5, "attn_implementation": implementation}
    if kind == "T5":
        config = transformers.T5Config(**sizes, d_model=4, d_kv=2, d_ff=6, num_layers=1, num_heads=2)
        model = transformers.T5EncoderModel(config)
    else:
        sizes |= {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 6}
        config = getattr(transformers, f"{kind}Config")(**sizes, head_dim=2, bos_token_id=0, eos_token_id=0)
        model = getattr(transformers, f"{kind}Model")(config)
    model.double().eval()
    network = network_of(lambda x: model(inputs_embeds=x).last_hidden_state)
    x = constant(1, 3, 4)
    report = lipschitz_bound(network, x)
    assert report.unbounded == ()
    assert largest_jacobian(network, [x], points=2) <= report.value < math.inf
