"""The upper bound of networks against Jacobians, pairs of points, and constants known in closed form."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_reg import register_lipschitz_rule
from lightning_reg.functional import LipschitzReport, jacobian_norm, lipschitz_bound
from lightning_reg.functional.lipschitz.chain import Chain
from lightning_reg.functional.lipschitz.rounding import norm_upwards, times
from tests.functional.lipschitz import lipsdp
from tests.functional.lipschitz.calls import Calls
from tests.functional.lipschitz.jacobians import largest_jacobian, searched_ratio
from tests.functional.lipschitz.random_networks import Residual
from tests.lipschitz_zoo import ZOO, member

every_member = pytest.mark.parametrize("name", ZOO)


def train(network, inputs, steps=15):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        output = network(*inputs)
        values = output.values() if isinstance(output, dict) else [output]
        sum((value - 3).square().mean() for value in values).backward()
        optimizer.step()


@every_member
def test_no_jacobian_and_no_pair_of_points_is_above_the_bound_at_init_and_after_training(name):
    network, inputs = member(name)
    for _ in range(2):
        report = lipschitz_bound(network, inputs)
        assert report.unbounded == ()
        assert math.isfinite(report.value)
        assert 0 < largest_jacobian(network, inputs) <= report.value
        assert searched_ratio(network, inputs) <= report.value
        train(network, inputs)


@every_member
def test_folding_batch_normalization_never_loosens_the_bound(name):
    network, inputs = member(name, seed=1)
    folded, plain = (lipschitz_bound(network, inputs, fold_batch_norm=fold).value for fold in (True, False))
    has_norm = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules())
    assert folded <= plain
    assert (folded < plain) == has_norm


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 1000))
def test_random_networks_with_random_activations_stay_below_the_bound(widths, seed):
    generator = torch.Generator().manual_seed(seed)
    kinds = [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.ELU(2.0), nn.Sigmoid(), nn.LeakyReLU(-1.5), nn.Identity(), nn.SELU()]
    layers = []
    for columns, rows in itertools.pairwise(widths):
        linear = nn.Linear(columns, rows)
        nn.init.normal_(linear.weight, generator=generator)
        layers += [linear, kinds[int(torch.randint(len(kinds), (), generator=generator))]]
    network, inputs = nn.Sequential(*layers), (torch.zeros(1, widths[0]),)
    assert largest_jacobian(network, inputs, seed=seed) <= lipschitz_bound(network, inputs).value


def test_networks_of_orthogonal_layers_have_bound_one():
    layers = []
    for _ in range(6):
        layers += [nn.init.orthogonal_(nn.Linear(7, 7).weight), nn.ReLU()]
    network = nn.Sequential(*(nn.Linear(7, 7) if isinstance(layer, nn.Parameter) else layer for layer in layers))
    for position, layer in enumerate(layers[::2]):
        network[2 * position].weight = layer
    report = lipschitz_bound(network, torch.randn(2, 7))
    assert report.value == pytest.approx(1, abs=1e-4)
    assert all(value == pytest.approx(1, abs=1e-4) for value in report.per_layer.values())


def test_a_deep_linear_network_and_a_diagonal_one_get_their_true_constant():
    linear = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 4), nn.Dropout(), nn.Linear(4, 6))
    product = linear[3].weight @ linear[1].weight @ linear[0].weight
    truth = np.linalg.norm(product.detach().double().numpy(), 2)
    assert lipschitz_bound(linear, torch.zeros(5)).value == pytest.approx(truth, rel=2e-5)

    diagonal = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 3))
    with torch.no_grad():
        diagonal[0].weight.copy_(torch.diag(torch.tensor([3.0, 1.0, 0.5])))
        diagonal[2].weight.copy_(torch.diag(torch.tensor([0.1, -2.0, 1.0])))
    assert lipschitz_bound(diagonal, torch.zeros(1, 3)).value == pytest.approx(2, rel=2e-5)
    with torch.no_grad():
        diagonal[2].weight[0, 0] = 4
    diagonal[1] = nn.ReLU()
    assert lipschitz_bound(diagonal, torch.zeros(1, 3)).value == pytest.approx(12, rel=2e-5)


@pytest.mark.parametrize("init", [nn.init.xavier_normal_, nn.init.orthogonal_])
def test_no_rounding_of_float32_takes_the_lower_bound_above_the_upper_one(init):
    generator = torch.Generator().manual_seed(0)
    for width in range(2, 42):
        network = nn.Sequential(*(nn.Linear(width, width) for _ in range(1 + width % 3)))
        for layer in network:
            init(layer.weight, generator=generator)
        inputs = torch.randn(4, width, generator=generator)
        lower, upper = jacobian_norm(network, inputs).max().item(), lipschitz_bound(network, inputs).value
        assert lower <= upper < 1.5 * lower


class Twice(Residual):
    def forward(self, x):
        return 3 * self.inner(self.inner(x))


def test_sums_and_modules_used_twice_count():
    inner = nn.Linear(8, 8)
    nn.init.orthogonal_(inner.weight, gain=0.1)
    assert lipschitz_bound(Residual(inner), torch.zeros(1, 8)).value == pytest.approx(1.1, rel=2e-5)
    nn.init.orthogonal_(inner.weight, gain=2.0)
    report = lipschitz_bound(Twice(inner), torch.zeros(1, 8))
    assert report.value == pytest.approx(12, rel=2e-5)
    assert report.per_layer == {"inner": pytest.approx(2, rel=1e-5)}


def eclipse_bound(weights):
    """Return the package's bound of a chain of matrices (out, in) with activations of slopes in [0, 1] in between."""
    chain = Chain(1.0)
    for position, weight in enumerate(weights):
        norm = norm_upwards(weight)
        following = (chain.activated(0.0, 1.0) if position else chain).linear(weight, norm)
        chain = following or Chain(times(chain.gain, norm))
    return chain.gain


def published_eclipse_fast(weights):
    """The closed form of Xu & Sivaranjani (2024), with its matrices as they write them."""
    x = np.eye(weights[0].shape[1])
    for w in weights[:-1]:
        p = w @ np.linalg.inv(x) @ w.T
        step = 2 / np.linalg.eigvalsh(p)[-1]
        x = step * np.eye(len(w)) - step**2 / 4 * p
    w = weights[-1]
    return np.sqrt(np.linalg.eigvalsh(w @ np.linalg.inv(x) @ w.T)[-1])


@pytest.mark.parametrize("widths", [(5, 8, 6, 3), (3, 40, 2), (6, 6, 6, 6, 6), (30, 4, 30, 4), (4, 1, 5)])
def test_chains_have_the_published_closed_form_of_eclipse_fast(widths):
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in zip(widths[1:], widths[:-1], strict=True)]
    tensors = [torch.tensor(weight) for weight in weights]
    assert eclipse_bound(tensors) == pytest.approx(published_eclipse_fast(weights), rel=1e-7)


def network_of(weights, activation):
    network = nn.Sequential()
    for weight in map(torch.tensor, weights):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight = nn.Parameter(weight)
        network.extend([layer, activation])
    return network.double()


def bound_and_closed_form(*widths):
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in zip(widths[1:], widths[:-1], strict=True)]
    network = network_of(weights, nn.ReLU())
    value = lipschitz_bound(network, torch.zeros(2, widths[0], dtype=torch.float64)).value
    return value, published_eclipse_fast(weights)


def test_a_chain_of_many_units_is_bounded_by_the_closed_form():
    value, published = bound_and_closed_form(3, 140, 2)
    assert value == pytest.approx(published, rel=1e-7)


@pytest.mark.parametrize("widths", [(5, 8, 6, 3), (30, 4, 30, 4), (4, 1, 5)])
def test_the_bound_of_a_chain_of_few_units_is_not_looser_than_the_closed_form(widths):
    value, published = bound_and_closed_form(*widths)
    assert value <= published * (1 + 1e-7)


def test_a_chain_of_few_units_has_the_bound_of_lipsdp():
    weights = lipsdp.weights()
    value = lipschitz_bound(network_of(weights, nn.ReLU()), torch.zeros(1, 5).double()).value
    assert lipsdp.LIPSDP * (1 - 1e-8) < value < lipsdp.LIPSDP * (1 + 5e-4)
    product = math.prod(np.linalg.norm(weight, 2) for weight in weights)
    assert value < eclipse_bound([torch.tensor(weight) for weight in weights]) < 0.7 * product


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [
        (nn.ReLU(), 0, 1),
        (nn.Sigmoid(), 0, 0.25),
        (nn.ELU(3.0), 0, 3),
        (nn.LeakyReLU(0.4), 0.4, 1),
        (nn.PReLU(init=-0.5), -0.5, 1),
        (nn.GELU(), -0.12891, 1.12891),
        (Calls(torch.sin), -1, 1),
    ],
    ids=repr,
)
def test_slopes_of_any_range_count_in_a_chain(activation, low, high):
    generator = np.random.default_rng(1)
    first, last = generator.normal(size=(4, 6)), generator.normal(size=(5, 4))
    network = nn.Sequential(network_of([first], activation), network_of([last], nn.Identity()))
    value = lipschitz_bound(network.double(), torch.zeros(1, 6).double()).value
    least = lipsdp.by_search(first, last, low, high)
    assert least * (1 - 1e-7) < value < least * (1 + 5e-4)
    assert value < 0.95 * high * np.linalg.norm(first, 2) * np.linalg.norm(last, 2)


def test_factors_and_consecutive_matrices_belong_to_the_chain():
    generator = np.random.default_rng(2)
    first, second, last = generator.normal(size=(7, 6)), generator.normal(size=(3, 7)), generator.normal(size=(5, 3))
    one, two, three = (torch.tensor(weight) for weight in (first, second, last))
    network = Calls(lambda x: (-0.5 * (2 * (x @ one.mT) @ two.mT).relu()) @ three.mT * 3)
    value = lipschitz_bound(network, torch.zeros(1, 6).double()).value
    least = 3 * lipsdp.by_search(second @ first, last, 0, 1)
    assert least * (1 - 1e-7) < value < least * (1 + 5e-4)


def snapshot(network):
    state = {name: tensor.tolist() for name, tensor in network.state_dict().items()}
    flags = [part.training for part in network.modules()]
    hooks = [len(part._forward_pre_hooks) for part in network.modules()]
    attributes = [set(vars(part)) for part in network.modules()]
    return state, flags, hooks, attributes, torch.get_rng_state().tolist()


@pytest.mark.parametrize("training", [True, False])
@every_member
def test_the_module_and_the_random_generator_are_left_as_they_are(name, training):
    network, inputs = member(name)
    network.train(training)
    next(network.modules()).train(not training)  # a flag of its own
    if name == "mlp":
        parametrizations.spectral_norm(network[0])
        parametrizations.weight_norm(network[2])
    versions = [parameter._version for parameter in network.parameters()]
    kept = [value.clone() for value in inputs]
    before = snapshot(network)
    lipschitz_bound(network, inputs)
    assert snapshot(network) == before
    assert [parameter._version for parameter in network.parameters()] == versions
    assert all(map(torch.equal, inputs, kept))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return 2 * x


def test_buffers_that_forward_changes_are_left_as_they_are():
    network = Counting()
    assert lipschitz_bound(network, torch.ones(2).double()).value == 2
    assert network.calls == 0


def effective(layer):
    """Return a plain layer with the weight that `layer` uses in eval mode."""
    layer.eval()
    layer(torch.zeros(1, 5))
    plain = nn.Linear(5, 5)
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    return plain


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", amount=10),
        pytest.param(
            torch.nn.utils.spectral_norm,
            marks=pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated:FutureWarning"),
        ),
        pytest.param(
            torch.nn.utils.weight_norm,
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
        ),
    ],
)
def test_weights_count_as_forward_uses_them(change):
    layer = nn.Linear(5, 5)
    change(layer)
    with torch.no_grad():
        for parameter in layer.parameters():  # as an optimizer does: what hooks have computed is out of date
            parameter.mul_(1.5).add_(0.01)
    layer.train()
    value = lipschitz_bound(layer, torch.zeros(1, 5)).value
    assert value == pytest.approx(lipschitz_bound(effective(layer), torch.zeros(1, 5)).value, rel=1e-5)


def test_compiled_and_wrapped_modules_are_looked_through():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    report = lipschitz_bound(network, torch.zeros(1, 3))
    compiled = nn.Sequential(torch.compile(network[0]), network[1], network[2])
    assert lipschitz_bound(torch.compile(network), torch.zeros(1, 3)) == report
    assert lipschitz_bound(compiled, torch.zeros(1, 3)) == report
    network.compile()
    assert lipschitz_bound(network, torch.zeros(1, 3)) == report


def test_half_precision_and_autocast_give_the_bound_of_float32():
    network, (images,) = member("cnn")
    network = network.bfloat16()
    expected = lipschitz_bound(network.float(), images.bfloat16().float()).value
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        value = lipschitz_bound(network.bfloat16(), images.bfloat16()).value
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["mlp", "cnn", "branches", "residual cnn"])
def test_weights_that_are_not_finite_give_nan_and_no_error(name, bad):
    network, inputs = member(name)
    with torch.no_grad():
        next(p for p in network.parameters() if p.ndim > 1).flatten()[0] = bad
    report = lipschitz_bound(network, inputs)
    assert math.isnan(report.value)
    assert any(math.isnan(value) for value in report.per_layer.values())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def test_a_module_that_cannot_be_traced_has_no_bound_but_its_layers_do():
    network = Branching()
    report = lipschitz_bound(network, torch.ones(1, 3))
    ((name, reason),) = report.unbounded
    assert report.value == math.inf
    assert name == "trace"
    assert "depends on the values" in reason
    norm = np.linalg.norm(network.layer.weight.detach().numpy(), 2)
    assert report.per_layer == {"layer": pytest.approx(norm, rel=1e-5)}


def test_an_example_that_the_module_does_not_take_is_the_reason():
    report = lipschitz_bound(nn.Linear(3, 3), torch.ones(1, 4))
    assert report.value == math.inf
    assert "RuntimeError" in report.unbounded[0][1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 12)
        self.unused = nn.LSTM(4, 4)

    def forward(self, x):
        self.unused(x)
        query, key, value = self.project(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize(
    ("network", "shape", "name", "reason"),
    [
        (Residual(Attention()), (2, 3, 4), "inner.scaled_dot_product_attention", "no Lipschitz constant"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), None, "trace", "TypeError"),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (2, 3, 4), "self_attn", "attention"),
        (nn.Sequential(nn.Linear(3, 4), nn.GLU()), (2, 3), "1", "product"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)), (2, 3), "1", "batch"),
        (nn.Sequential(nn.Hardshrink()), (2, 3), "0", "discontinuous"),
        (nn.Sequential(nn.Softplus(threshold=2)), (2, 3), "0", "threshold"),
        (nn.Sequential(nn.LocalResponseNorm(2)), (2, 3, 4), "0", "no rule for LocalResponseNorm"),
        (nn.Sequential(nn.CELU(-1.0)), (2, 3), "0", "negative"),
    ],
)
def test_operations_without_a_bound_are_named_with_the_reason(network, shape, name, reason):
    report = lipschitz_bound(network, torch.ones(*(shape or (2, 3, 4))))
    assert report.value == math.inf
    assert [each for each, _ in report.unbounded] == [name]
    assert reason in report.unbounded[0][1]


def test_whole_numbers_are_held_fixed_beside_others_and_have_no_bound_alone():
    embedding = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    report = lipschitz_bound(embedding, torch.tensor([1, 2]))
    assert report.value == math.inf
    assert report.unbounded[0][0] == "0"
    assert "after the embedding" in report.unbounded[0][1]
    assert set(report.per_layer) == {"0", "1"}

    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3)

        def forward(self, x, label):
            return 2 * x + self.embedding(label)

    assert lipschitz_bound(Conditional(), (torch.ones(2, 3).double(), torch.tensor([1, 2]))).value == 2


class Own(nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))

    def forward(self, x, y=None):
        return x * x if y is None else x * y


def own_function(x):
    return x * x


class CallsOwn(nn.Module):
    def forward(self, x):
        return own_function(2 * x)


def test_a_registered_rule_gets_the_arguments_of_forward():
    seen = []

    def rule(module, x, y=None):
        seen.append((module.training, x.shape))
        return module.constant

    assert lipschitz_bound(Own(3.0), torch.ones(2)).value == math.inf
    register_lipschitz_rule(Own, rule)
    report = lipschitz_bound(nn.Sequential(nn.Linear(2, 2), Own(3.0)), torch.ones(4, 2))
    assert report.value == pytest.approx(3 * report.per_layer["0"], rel=2e-5)
    assert report.per_layer["1"] == 3
    assert seen == [(False, (4, 2))]
    # Both arguments count, as one.
    assert lipschitz_bound(Own(2.0), (torch.ones(2), torch.ones(2))).value == pytest.approx(2 * math.sqrt(2), rel=2e-5)
    with pytest.raises(ValueError, match=r"a number >= 0, got -1"):
        lipschitz_bound(Own(-1.0), torch.ones(2))
    register_lipschitz_rule(Own, lambda module, x: "three")
    with pytest.raises(TypeError, match="got 'three' of type str"):
        lipschitz_bound(Own(1.0), torch.ones(2))
    register_lipschitz_rule(Own, lambda module, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lipschitz_bound(Own(1.0), torch.ones(2))


def test_functions_of_ones_own_and_of_torch_can_be_registered():
    assert lipschitz_bound(CallsOwn(), torch.ones(2)).unbounded[0][0] == "mul"
    register_lipschitz_rule(own_function, lambda x: 5.0)
    assert lipschitz_bound(CallsOwn(), torch.ones(2).double()).value == 10


def test_a_subclass_that_computes_something_else_does_not_inherit_the_rule():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    doubled, renamed = Doubled(3, 3), Renamed(3, 3)
    renamed.load_state_dict(doubled.state_dict())
    plain = lipschitz_bound(renamed, torch.zeros(1, 3))
    report = lipschitz_bound(doubled, torch.zeros(1, 3))
    assert report.value == pytest.approx(2 * plain.value)
    assert list(plain.per_layer) == ["Renamed"]


class Magnified(nn.Conv2d):
    """Weight standardization as it is often written: `forward` is inherited, the method that it calls is not."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, 50 * weight, bias)


def test_a_method_that_forward_calls_counts_where_a_subclass_or_an_instance_replaces_it():
    layer, images = Magnified(1, 2, 3), torch.randn(1, 1, 5, 5)
    plain = nn.Conv2d(1, 2, 3)
    plain.load_state_dict(layer.state_dict())
    expected = 50 * lipschitz_bound(plain, images).value
    assert lipschitz_bound(layer, images).value == pytest.approx(expected, rel=2e-5)
    plain._conv_forward = lambda images, weight, bias: nn.functional.conv2d(images, 50 * weight, bias)
    assert lipschitz_bound(plain, images).value == math.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lipschitz_bound(torch.relu, torch.ones(1)), TypeError, "`module` must be a torch.nn.Module"),
        (lambda: lipschitz_bound(nn.ReLU(), 3), TypeError, "`example_input` must be a tensor, a dict with"),
        (lambda: lipschitz_bound(nn.ReLU(), ()), TypeError, "`example_input` must be a tensor, a dict with"),
        (lambda: lipschitz_bound(nn.ReLU(), torch.ones(1), fold_batch_norm=1), TypeError, "`fold_batch_norm`"),
        (lambda: register_lipschitz_rule(int, len), TypeError, "`target` must be a subclass of torch.nn.Module"),
        (lambda: register_lipschitz_rule(nn.ReLU(), len), TypeError, "`target` must be a subclass of torch.nn.Module"),
        (lambda: register_lipschitz_rule("relu", len), TypeError, "`target` must be a subclass of torch.nn.Module"),
        (lambda: register_lipschitz_rule(nn.Bilinear, 3), TypeError, "`rule` must be callable"),
    ],
)
def test_bad_arguments_are_errors_with_the_rule(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_report_cannot_be_changed():
    report = LipschitzReport(1.0)
    with pytest.raises(AttributeError):
        report.value = 2.0


def test_a_function_of_whole_numbers_alone_has_no_bound_and_the_report_says_why():
    report = lipschitz_bound(nn.Tanh(), torch.arange(3))

    assert report.value == math.inf
    assert report.unbounded[0][0] == "input"
    assert "whole numbers" in report.unbounded[0][1]


def test_a_large_layer_is_certified_closely():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1030, 1026), nn.ReLU(), nn.Linear(1026, 2))
    network[0].weight.data[::2] = 0

    report = lipschitz_bound(network, torch.zeros(1, 1030))

    norms = [np.linalg.norm(network[index].weight.detach().double().numpy(), 2) for index in (0, 2)]
    assert norms[0] <= report.per_layer["0"] <= 1.0051 * norms[0]
    assert jacobian_norm(network, torch.randn(1, 1030)).item() <= report.value <= 1.0052 * norms[0] * norms[1]


def call(forward, inputs):
    return forward(inputs)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Linear(4, 4)], ids=["dropout", "linear"])
def test_a_forward_on_the_instance_that_is_bound_to_the_module_counts_as_the_module(layer):
    # `DropoutScheduler` sets one. It is not the module in training mode that counts.
    network = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 3)).train()
    expected = lipschitz_bound(network, torch.zeros(1, 4)).value

    layer.forward = partial(call, layer.forward)

    assert lipschitz_bound(network, torch.zeros(1, 4)).value == pytest.approx(expected, rel=1e-6)
