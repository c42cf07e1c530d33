"""Dot-product attention on rows of bounded length: the bound is true, attained where it should be, and no guess."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.attentions import FORMS, Attention
from tests.functional.lipschitz.calls import constant, network_of
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at, largest_jacobian


class Clipped(nn.Module):
    """Clips rows, which may then be anywhere in a box, without a change of their differences inside."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x.clamp(-self.size, self.size)


@pytest.mark.parametrize("seed", range(8 * len(FORMS)))
def test_the_bound_of_random_attention_is_not_below_exact_jacobians(seed):
    network = Attention(seed)
    report = lipschitz_bound(network, network.example())
    assert report.unbounded == ()
    assert largest_jacobian(network, [network.example()], points=3, seed=seed) <= report.value < math.inf


@pytest.mark.parametrize("seed", range(4 * len(FORMS)))
def test_the_bound_holds_at_the_border_of_a_box_of_rows(seed):
    network = Attention(seed)
    network.norm = Clipped(2.0)
    function, start = flat_function(network, [network.example()])
    corner = torch.randn(len(start), generator=torch.Generator().manual_seed(seed)).sign() * 1.999
    bound = lipschitz_bound(network, network.example()).value
    assert jacobian_norm_at(function, corner.double()) <= bound < math.inf


def test_one_head_has_the_bound_of_the_formula():
    tokens, width, scale = 3, 4, 0.7
    norm = nn.LayerNorm(width, eps=0.25).double()
    with torch.no_grad():
        norm.weight.copy_(constant(width)), norm.bias.copy_(constant(3, width)[1])
    query, key, value = constant(3, width, width)

    def attend(x):
        rows = norm(x)
        return F.scaled_dot_product_attention(rows @ query.T, rows @ key.T, rows @ value.T, scale=scale)

    gain, shift = (each.detach().numpy() for each in (norm.weight, norm.bias))
    radius = 2 * np.abs(gain).max() + np.linalg.norm(shift)
    slope = np.abs(gain).max() / 0.5
    q, k, v = (np.linalg.norm(each.numpy(), 2) for each in (query, key, value))
    expected = slope * v * (scale * radius**2 * q * k * (1 + math.sqrt(tokens)) + math.sqrt(tokens))
    report = lipschitz_bound(network_of(attend), torch.zeros(2, tokens, width, dtype=torch.float64))
    assert report.value == pytest.approx(expected, rel=1e-6)


def test_two_keys_attain_what_queries_do_to_the_output():
    # One query between a key and its opposite: the output changes by R_k R_v s, if the query does.
    keys = torch.tensor([[3.0], [-3.0]], dtype=torch.float64)
    network = network_of(lambda x: F.scaled_dot_product_attention(x.clamp(-1, 1), keys, 2 * keys, scale=0.5))
    x = torch.zeros(1, 1, dtype=torch.float64)
    truth = jacobian_norm_at(*flat_function(network, [x]))
    assert lipschitz_bound(network, x).value == pytest.approx(truth, rel=1e-6) == 9


def test_groups_of_heads_may_share_keys_and_values():
    def attend(x):
        rows = F.layer_norm(x, (4,), eps=1.0)
        query, key, value = (rows @ constant(4, 8)).view(1, 3, 4, 2).mT.mT.transpose(1, 2).split([2, 1, 1], 1)
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True, is_causal=True)

    network, x = network_of(attend), torch.zeros(1, 3, 4, dtype=torch.float64)
    assert largest_jacobian(network, [x]) <= lipschitz_bound(network, x).value < math.inf


TRANSFORMERS = {
    "encoder": nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 8, norm_first=True, layer_norm_eps=0.1), 2, enable_nested_tensor=False
    ),
    "batch first": nn.TransformerEncoderLayer(6, 3, 8, batch_first=True, norm_first=True, activation="gelu"),
    "gated": nn.Sequential(nn.LayerNorm(6, eps=0.1), nn.Linear(6, 8), nn.GLU()),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_pre_norm_layers_of_torch_have_a_bound(name):
    network = TRANSFORMERS[name].double()
    x = torch.randn(3, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    report = lipschitz_bound(network, x)
    assert report.unbounded == ()
    assert all(map(math.isfinite, report.per_layer.values()))
    assert largest_jacobian(network, [x], points=4) <= report.value < math.inf


def test_post_norm_has_none_because_nothing_bounds_its_input_but_the_next_layer_has():
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    report = lipschitz_bound(network, torch.zeros(1, 3, 6))
    ((name, reason),) = report.unbounded
    assert (report.value, name) == (math.inf, "layers.0.self_attn")
    assert "unless its rows are bounded" in reason
    assert report.per_layer["layers.1.self_attn"] < math.inf
    bounded = nn.Sequential(nn.Hardtanh(), layer)
    x = torch.zeros(1, 3, 6, dtype=torch.float64)
    assert largest_jacobian(bounded, [x], points=4) <= lipschitz_bound(bounded.double(), x).value < math.inf


class Hidden(nn.Module):
    """A language model from embeddings to hidden states."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(inputs_embeds=x).last_hidden_state


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["GPT2", "ViT"])
def test_models_of_transformers_have_a_bound(kind, implementation):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "GPT2": {"n_embd": 4, "n_head": 2, "n_layer": 2, "n_positions": 8, "vocab_size": 5},
        "ViT": {
            "hidden_size": 4,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 6,
            "image_size": 4,
            "patch_size": 2,
            "num_channels": 1,
        },
    }[kind]
    config = getattr(transformers, f"{kind}Config")(
        **sizes, attn_implementation=implementation, bos_token_id=0, eos_token_id=0
    )
    model = getattr(transformers, f"{kind}Model")(config).double().eval()
    network, shape = (Hidden(model), (1, 4, 4)) if kind == "GPT2" else (model, (1, 1, 4, 4))
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    report = lipschitz_bound(network, x)
    assert report.unbounded == ()
    first = Hidden(model) if kind == "GPT2" else Outputs(model)
    assert largest_jacobian(first, [x], points=2) <= report.value < math.inf


class Outputs(nn.Module):
    """An image model without its pooled output."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).last_hidden_state


def normal(x):
    return F.layer_norm(x, x.shape[-1:], constant(x.shape[-1]), eps=0.5)


PRODUCTS = {
    "gate": lambda x: normal(x) * normal(x).sigmoid(),
    "square": lambda x: normal(x).square() - normal(x) ** 3,
    "gram": lambda x: normal(x) @ normal(x).mT,
    "features": lambda x: normal(x).mT @ normal(x),
    "vector": lambda x: normal(x)[0, 0] @ normal(x)[0].mT,
    "polynomial": lambda x: (0.5 * normal(x) + 1) * (2 - normal(x).roll(1, -1)) / 3,
    "halves": lambda x: normal(x).chunk(2, -1)[0] * normal(x).chunk(2, -1)[1],
    "rotary": lambda x: (normal(x) * constant(4).cos() + turned(normal(x)) * constant(4).sin()) @ normal(x).mT,
    "masked": lambda x: normal(x).masked_fill(constant(4) > 0, 2.0) * torch.where(constant(4) > 0, normal(x), 1.0),
    "broadcast": lambda x: normal(x)[:, :1] * normal(x) * normal(x)[:1],
    "repeated": lambda x: normal(x).repeat(1, 2, 1) * normal(x).expand(2, -1, -1).reshape(1, 6, 4),
    "channels": lambda x: normal(x).transpose(1, 2).reshape(1, 2, 6) @ normal(x).reshape(1, 6, 2),
    "cosine": lambda x: F.normalize(x, dim=-1, eps=0.5) @ F.normalize(x, dim=-1, eps=0.5).mT,
    "groups": lambda x: F.group_norm(x, 3, eps=0.5) * F.rms_norm(x, (3, 4), eps=0.5) if x.shape[1] == 3 else x,
    "over queries": lambda x: (normal(x) @ normal(x).mT).softmax(1).mT @ normal(x),
    "means of means": lambda x: attention_twice(normal(x)),
    "values first": lambda x: torch.einsum("bjd,bij->bdi", normal(x), (normal(x) @ normal(x).mT).softmax(-1)),
    "learned keys": lambda x: (normal(x) @ constant(4, 5)).softmax(-1) @ constant(5, 3),
    "soft cap": lambda x: (3 * torch.tanh(normal(x) @ normal(x).mT / 3)).softmax(-1) @ normal(x),
    "biased scores": lambda x: (normal(x) @ normal(x).mT + constant(3, 3) + x @ constant(4, 3)).softmax(-1) @ normal(x),
}


def turned(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def attention_twice(rows):
    weights = (rows @ rows.mT).softmax(-1)
    return weights @ weights @ rows


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_bounded_values_have_a_bound(name):
    network, x = network_of(PRODUCTS[name]), torch.zeros(1, 3, 4, dtype=torch.float64)
    report = lipschitz_bound(network, x)
    assert report.unbounded == ()
    assert max(largest_jacobian(network, [x], seed=seed) for seed in range(2)) <= report.value < math.inf


def test_weights_that_are_not_finite_make_the_bound_nan():
    network = TRANSFORMERS["batch first"].double()
    x = torch.zeros(1, 3, 6, dtype=torch.float64)
    before = network.self_attn.in_proj_weight[0, 0].item()
    with torch.no_grad():
        network.self_attn.in_proj_weight[0, 0] = math.nan
        value = lipschitz_bound(network, x).value
        network.self_attn.in_proj_weight[0, 0] = before
    assert math.isnan(value)
