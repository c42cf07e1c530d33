"""Each rule against Jacobians at many points; rules of linear operations against the norm of their matrix."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm as normal
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import Calls, constant, network_of
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at, largest_jacobian

INDEX = torch.tensor([0, 2, 2, 1, 2])
# The bound is the norm of the matrix itself.
EXACT = {
    "view": (lambda x: x.view(x.size(0), -1).unsqueeze(1), (2, 3, 4)),
    "permute": (lambda x: x.permute(1, 0, 2).flatten(1).T.contiguous(), (2, 3, 4)),
    "expand": (lambda x: x.unsqueeze(1).expand(-1, 5, -1), (2, 3)),
    "repeat": (lambda x: x.repeat(2, 3), (2, 3)),
    "index": (lambda x: x[:, INDEX], (2, 3)),
    "slice": (lambda x: x[:, ::2, None], (2, 5)),
    "index_select": (lambda x: x.index_select(1, INDEX), (2, 3)),
    "gather": (lambda x: torch.gather(x, 1, INDEX.expand(2, -1)), (2, 3)),
    "reflect": (lambda x: F.pad(x, (2, 2), mode="reflect"), (1, 2, 4)),
    "replicate": (nn.ReplicationPad2d((1, 2, 0, 1)), (1, 1, 3, 3)),
    "zeros": (lambda x: F.pad(x, (2, 1), value=1.0), (2, 3)),
    "unfold": (nn.Unfold(3, padding=1), (1, 1, 4, 4)),
    "unfold method": (lambda x: x.unfold(1, 3, 1), (2, 6)),
    "roll": (lambda x: x.roll(1, 0).flip(1).movedim(0, 1), (2, 3)),
    "sum": (lambda x: x.sum(), (2, 3)),
    "mean": (lambda x: x.mean(dim=(1, 2), keepdim=True), (2, 3, 4)),
    "sums of sums": (lambda x: (x + 1 - constant(3)).sum(-1) / 4, (2, 3)),
    "average pool": (nn.AvgPool2d(2), (1, 2, 4, 6)),
    "global pool": (nn.AdaptiveAvgPool2d(1), (1, 2, 4, 6)),
    "constant": (lambda x: -x * constant(2, 3) / 0.3, (2, 3)),
    "broadcast constant": (lambda x: constant(4, 3) * x, (1, 3)),
    "broadcast sum": (lambda x: constant(4, 3) + x, (1, 3)),
    "division": (lambda x: x / constant(3), (2, 3)),
    "scalar": (lambda x: 2 * (1 - x) * -3, (2, 3)),
    "alpha": (lambda x: torch.add(torch.ones(3), x, alpha=-2.5), (2, 3)),
    "matmul": (lambda x: x @ constant(3, 5), (2, 3)),
    "matmul left": (lambda x: constant(4, 2) @ x, (2, 3)),
    "matmul batch": (lambda x: torch.bmm(x, constant(1, 3, 4).expand(2, -1, -1)), (2, 2, 3)),
    "vector": (lambda x: x.matmul(constant(3)), (2, 3)),
    "linear": (lambda x: F.linear(x, constant(4, 3), constant(4)), (2, 3)),
    "conv": (lambda x: F.conv2d(x, constant(2, 1, 3, 3), None, 2, 1, 1, 1), (1, 1, 5, 4)),
    "transposed": (lambda x: F.conv_transpose1d(x, constant(2, 3, 4), stride=2, padding=1), (1, 2, 5)),
    "chain of numbers": (lambda x: 0.5 * (x @ constant(3, 4)) @ constant(4, 2), (2, 3)),
    "stack": (lambda x: torch.stack([x, x, 2 * x], 1), (2, 3)),
    "identity": (nn.Sequential(nn.Identity(), nn.Dropout(0.9), nn.Flatten()), (2, 3)),
    "detach": (lambda x: x.clone().to(torch.float64).double(), (2, 3)),
}
# The bound is above the truth, or attained in a limit.
ABOVE = {
    "residual": (lambda x: x + x.tanh(), (2, 3)),
    "difference": (lambda x: x - x, (2, 3)),
    "rsub": (lambda x: torch.rsub(x, x.sin(), alpha=2), (2, 3)),
    "split": (lambda x: torch.cat(x.split(2, 1)[::-1], 0), (2, 4)),
    "unbind": (lambda x: sum(x.unbind(1)), (2, 3)),
    "where": (lambda x: torch.where(constant(2, 3) > 0, x, 2 * x), (2, 3)),
    "mask": (lambda x: x.masked_fill(constant(2, 3) > 0, 0.0), (2, 3)),
    "max pool": (nn.MaxPool2d(3, 2, padding=1), (1, 1, 7, 6)),
    "dilated max pool": (lambda x: F.max_pool1d(x, 3, 2, 1, 2), (1, 2, 9)),
    "pool with positions": (lambda x: F.max_pool1d(x, 2, return_indices=True)[0], (1, 2, 8)),
    "adaptive max pool": (nn.AdaptiveMaxPool1d(4), (1, 2, 7)),
    "power pool": (nn.LPPool1d(2, 3, 1), (1, 2, 7)),
    "negative divisor": (lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=-2), (1, 1, 5, 6)),
    "overlapping average": (nn.AvgPool1d(3, 2, padding=1), (1, 2, 9)),
    "adaptive average": (lambda x: F.adaptive_avg_pool1d(x, 4), (1, 2, 7)),
    "fold": (nn.Fold((4, 4), 2), (1, 4, 9)),
    "batched matmul": (lambda x: constant(4, 5, 2) @ x, (2, 3)),
    "addmm": (lambda x: torch.addmm(x, x, constant(3, 3), beta=0.5, alpha=2), (2, 3)),
    "largest": (lambda x: x.max(dim=1).values + x.amin(1), (2, 5)),
    "maximum": (lambda x: torch.maximum(x, 2 * x.flip(0)), (2, 5)),
    "sorted": (lambda x: x.sort(dim=1)[0].topk(2, dim=1).values, (2, 5)),
    "norm": (lambda x: x.norm(dim=1) + torch.linalg.vector_norm(x, 1, dim=1), (2, 5)),
    "logsumexp": (lambda x: x.logsumexp(1), (2, 5)),
    "softmax": (lambda x: torch.softmax(x / 0.5, -1), (2, 4)),
    "softmin": (nn.Softmin(dim=1), (2, 4)),
    "log softmax": (nn.LogSoftmax(dim=1), (2, 4)),
    "layer norm": (nn.LayerNorm(4, eps=0.5), (2, 4)),
    "rms norm": (lambda x: F.rms_norm(x, (4,), eps=0.3), (2, 4)),
    "group norm": (nn.GroupNorm(2, 4, eps=0.2), (2, 4, 3)),
    "instance norm": (lambda x: F.instance_norm(x, eps=0.2), (2, 2, 3)),
    "functional batch norm": (
        lambda x: F.batch_norm(x @ constant(3, 3), 0 * constant(3), constant(3).abs(), constant(3), eps=0.1),
        (2, 3),
    ),
    "normalize": (lambda x: F.normalize(x, dim=1, eps=0.1), (2, 4)),
    "clamp": (lambda x: x.clamp(-constant(3).abs(), constant(3).abs()), (2, 3)),
    "prelu": (lambda x: F.prelu(x, constant(3) * 2), (2, 3)),
    "pixel shuffle": (nn.Sequential(nn.PixelShuffle(2), nn.ReLU()), (1, 4, 2, 2)),
    "in place": (lambda x: x.mul(3).add_(x).mul_(2).relu_(), (2, 3)),
    "dictionary": (lambda x: {"a": x, "b": [x.sin(), (2 * x,)]}, (2, 3)),
    "sizes": (
        lambda x: torch.cat([x[i] for i in range(len(x))]) * math.sqrt(x.shape[-1]) if x.ndim == 2 else x,
        (2, 3),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_rules_of_linear_operations_give_the_norm_of_their_matrix(name):
    function, shape = EXACT[name]
    network = network_of(function)
    inputs = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    report = lipschitz_bound(network, inputs)
    truth = jacobian_norm_at(*flat_function(network, [inputs]))
    assert report.unbounded == ()
    assert truth <= report.value * (1 + 1e-12)
    assert report.value == pytest.approx(truth, rel=2e-5)


@pytest.mark.parametrize("name", ABOVE)
def test_no_jacobian_is_above_the_rule(name):
    function, shape = ABOVE[name]
    network = network_of(function)
    inputs = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    report = lipschitz_bound(network, inputs)
    assert report.unbounded == ()
    assert 0 <= largest_jacobian(network, [inputs], points=20) <= report.value * (1 + 1e-9) < math.inf


SLOPES = {
    nn.GELU(): lambda x: normal.cdf(x) + x * normal.pdf(x),
    nn.GELU("tanh"): None,
    nn.SiLU(): None,
    nn.Mish(): None,
    nn.SELU(): None,
    nn.Hardswish(): None,
    nn.Sigmoid(): None,
    nn.Hardsigmoid(): None,
    nn.ELU(2.5): None,
    nn.CELU(0.5): None,
    nn.LeakyReLU(-1.7): None,
    nn.RReLU(1.0, 1.5): None,
    nn.PReLU(init=-1.25): None,
    nn.Softplus(3.0): None,
    nn.Tanh(): None,
    nn.Softsign(): None,
    nn.Tanhshrink(): None,
    nn.Softshrink(0.2): None,
    nn.LogSigmoid(): None,
    nn.ReLU6(): None,
    nn.Hardtanh(-2, 3): None,
    nn.Threshold(0.5, 0.5): None,
    Calls(torch.erf): None,
    Calls(torch.sin): None,
    Calls(torch.atan): None,
}


@pytest.mark.parametrize("activation", SLOPES, ids=str)
def test_slopes_of_activations_are_rounded_up_and_no_further(activation):
    value = lipschitz_bound(activation, torch.zeros(1)).value
    points = torch.linspace(-40, 40, 400001, dtype=torch.float64).requires_grad_()
    (slopes,) = torch.autograd.grad(activation.double().eval()(points).sum(), points)
    largest = slopes.abs().max().item()
    assert largest <= value <= largest * (1 + 2e-5) + 1e-9


def test_the_slope_of_gelu_is_above_its_true_maximum():
    best = minimize_scalar(lambda x: -(normal.cdf(x) + x * normal.pdf(x)), bounds=(0, 4), options={"xatol": 1e-12})
    assert -best.fun <= lipschitz_bound(nn.GELU(), torch.zeros(1)).value < -best.fun + 2e-5


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_softmax_and_its_logarithm_have_bounds_that_are_attained(classes):
    logits = torch.zeros(classes, dtype=torch.float64)
    logits[2:] = -50  # two classes of one half
    value = lipschitz_bound(nn.Softmax(-1), logits).value
    assert value == pytest.approx(jacobian_norm_at(nn.Softmax(-1), logits), abs=1e-9)
    logits[1:] = -50
    value = lipschitz_bound(nn.LogSoftmax(-1), logits).value
    assert value == pytest.approx(jacobian_norm_at(nn.LogSoftmax(-1), logits), abs=1e-9)


def test_the_bound_of_max_pooling_and_of_layer_norm_is_attained():
    images = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    images[0, 0, 2, 2] = 1
    pool = nn.MaxPool2d(3, 2)
    function, vector = flat_function(pool, [images])
    assert lipschitz_bound(pool, images).value == pytest.approx(jacobian_norm_at(function, vector)) == 2
    norm = nn.LayerNorm(4).double()
    function, vector = flat_function(norm, [torch.zeros(4)])
    assert lipschitz_bound(norm, torch.zeros(4).double()).value == pytest.approx(jacobian_norm_at(function, vector))


UNBOUNDED = {
    "product": (lambda x: x * x, "mul", "product"),
    "power": (lambda x: x**2, "pow", "power"),
    "quotient": (lambda x: 1 / (1 + x.abs()), "truediv", "division"),
    "matmul": (lambda x: x @ x.T, "matmul", "product"),
    "exp": (lambda x: x.exp(), "exp", "derivative is unbounded"),
    "mask": (lambda x: x * (x > 0), "gt", "discontinuous"),
    "where": (lambda x: torch.where(x > 0, x, 0.0), "gt", "discontinuous"),
    "positions": (lambda x: x[:, x.argmax(1)], "argmax", "discontinuous"),
    "quantiles of constants": (lambda x: constant(5).float().quantile(x[0].sigmoid()), "quantile", "depend"),
    "a size": (lambda x: x * len((x > 0).nonzero()), "trace", "depends on the values"),
    "ones of a size": (lambda x: x * torch.ones_like(x[x > 0]).sum(), "getitem", "size"),
    "rounded": (lambda x: x.round(), "round", "discontinuous"),
    "unknown": (lambda x: torch.linalg.inv(x), "linalg_inv", "no rule"),
    "variance": (lambda x: x.var(1), "var", "square"),
    "view of a change": (lambda x: _change_expanded(x), None, "in place"),
    "change of a constant": (lambda x: _fill(x), "trace", "does not depend on the input is changed in place"),
    "transposed in place": (lambda x: torch.relu((x @ constant(3, 3).float()).t_()), "t_", "shape"),
    "enlarged windows": (lambda x: F.lp_pool1d(x, 2, 2, ceil_mode=True), "lp_pool1d", "ceil_mode"),
    "random": (lambda x: x + torch.randn(3), "forward", "random"),
    "another path": (lambda x: 2 * x if type(x) is torch.Tensor else x, "trace", "another result during the trace"),
    "number": (lambda x: x * x.sum().item(), "trace", "depend"),
}


def _change_expanded(x):
    y = 1 * x
    z = y[:, :1].expand(-1, 100)
    y.mul_(100)
    return z


TABLE = torch.zeros(3, 3)


def _fill(x):
    TABLE[:, :2].copy_(x[:, :2])
    return TABLE


@pytest.mark.parametrize("name", UNBOUNDED)
def test_operations_without_a_bound_are_named_with_the_reason(name):
    function, operation, reason = UNBOUNDED[name]
    report = lipschitz_bound(Calls(function), torch.rand(3, 3))
    assert report.value == math.inf
    assert operation is None or operation in [each for each, _ in report.unbounded]
    assert any(reason in why for _, why in report.unbounded)


def test_what_comes_out_unused_is_no_reason():
    def function(x):
        x.var()
        (x * x).sum()
        return 2 * x

    assert lipschitz_bound(Calls(function), torch.rand(3, 3)).unbounded == ()


def test_a_change_in_place_counts_for_every_name_of_the_tensor():
    def function(x):
        y = x.clone()
        z = y
        z *= 10
        y += x
        return z

    network = Calls(function)
    assert lipschitz_bound(network, torch.rand(3)).value == pytest.approx(11, rel=2e-5)


def test_dropout_that_is_always_on_counts_with_any_mask():
    network = Calls(lambda x: F.dropout(x, 0.5))
    example, state = torch.rand(3, dtype=torch.float64), torch.get_rng_state()
    assert lipschitz_bound(network, example).value == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert lipschitz_bound(Calls(lambda x: F.dropout(x, 0.5, training=False)), example).value == 1
