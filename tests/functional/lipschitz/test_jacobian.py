"""Norms of input Jacobians agree with `torch.autograd.functional.jacobian` and an SVD, and nothing is changed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_reg.functional import jacobian_norm


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)

    def forward(self, inputs):
        return self.layer(inputs)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)

    def forward(self, inputs):
        return self.layer(inputs)[0][:, -1]


class Overwriting(nn.Module):
    """Changes what it is given, and what it has computed."""

    def forward(self, inputs):
        inputs.mul_(2)
        hidden = inputs.sin()
        return hidden[:, :3].mul_(3).exp_()


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4)), (6,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (2, 6, 6),
    ),
    "images out": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3, padding=1), nn.SiLU()), (2, 5, 5)),
    "few inputs": (lambda: nn.Sequential(nn.Linear(5, 50), nn.Tanh()), (5,)),
    "one number": (lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), (5,)),
    "attention": (Attention, (5, 8)),
    "recurrent": (Recurrent, (6, 3)),
    "overwriting": (Overwriting, (5,)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make().to(dtype), torch.randn(4, *shape, dtype=dtype)


def true_norms(fn, x):
    norms = []
    for row in x:
        matrix = torch.autograd.functional.jacobian(lambda point: fn(point[None].clone())[0], row)
        norms.append(torch.linalg.svdvals(matrix.reshape(-1, row.numel()).double())[0])
    return torch.stack(norms)


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_largest_singular_value_of_the_jacobian(name, dtype):
    network, x = made(name, dtype)

    norms = jacobian_norm(network, x, iterations=30)

    assert norms.shape == (4,)
    assert norms.dtype == dtype
    assert not norms.requires_grad
    expected = true_norms(network.eval(), x)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-9, atol=0)


@pytest.mark.parametrize("iterations", [1, 3, 5])
@pytest.mark.parametrize("name", ["images out", "attention"])
def test_few_iterations_stay_below_the_truth_and_near_it(name, iterations):
    network, x = made(name)

    norms = jacobian_norm(network, x, iterations=iterations)

    truth = true_norms(network.eval(), x)
    assert (norms <= truth * (1 + 1e-5)).all()
    assert norms.max() >= {1: 0.5, 3: 0.85, 5: 0.9}[iterations] * truth.max()


@pytest.mark.parametrize("name", ["cnn", "attention"])
def test_nothing_is_changed(name):
    network, x = made(name)
    parametrizations.spectral_norm(next(m for m in network.modules() if isinstance(m, nn.Linear)))
    network.train()
    list(network.modules())[-1].training = False
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = [part.training for part in network.modules()]
    state, inputs, random = copy.deepcopy(network.state_dict()), x.clone(), torch.get_rng_state()

    jacobian_norm(network, x)

    assert [part.training for part in network.modules()] == modes
    torch.testing.assert_close(dict(network.state_dict()), dict(state), rtol=0, atol=0)
    assert all((parameter.grad == 1).all() for parameter in network.parameters())
    assert torch.equal(x, inputs)
    assert torch.equal(torch.get_rng_state(), random)


def test_flags_are_put_back_after_an_error_and_eval_is_not_called():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("an adapter would merge its weights")

    network = nn.Sequential(Merging(3, 3), nn.Unflatten(1, (2, 2)))

    with pytest.raises(RuntimeError, match="unflatten"):
        jacobian_norm(network, torch.ones(2, 3))

    assert all(part.training for part in network.modules())


def test_random_numbers_that_a_network_draws_are_put_back():
    random = torch.get_rng_state()

    jacobian_norm(lambda x: x * torch.randn_like(x), torch.ones(3, 2))

    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
@pytest.mark.parametrize("name", ["cnn", "attention"])
def test_the_context_makes_no_difference(name, context):
    network, x = made(name)
    expected = jacobian_norm(network, x)

    with context():
        torch.testing.assert_close(jacobian_norm(network, x + 0), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cnn", "attention"])
def test_a_compiled_network_is_measured_without_its_graph(name):
    network, x = made(name)

    compiled = torch.compile(network, backend="eager")

    torch.testing.assert_close(jacobian_norm(compiled, x), jacobian_norm(network, x), rtol=0, atol=0)


def test_a_method_of_a_module_is_evaluated_in_eval_mode_too():
    network, x = made("cnn")

    assert torch.equal(jacobian_norm(network.forward, x), jacobian_norm(network, x))


def test_a_module_in_half_precision_computes_in_it():
    network, x = made("mlp")

    norms = jacobian_norm(network.bfloat16(), x.bfloat16())

    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms.double(), true_norms(network.float(), x), rtol=0.05, atol=0)


@pytest.mark.parametrize(("name", "value"), [("cnn", torch.nan), ("images out", torch.nan), ("attention", torch.inf)])
def test_weights_that_are_not_finite_give_nan(name, value):
    network, x = made(name)
    with torch.no_grad():
        next(network.parameters()).flatten()[0] = value

    assert jacobian_norm(network, x).isnan().all()


def test_one_sample_that_is_not_finite_leaves_the_others_alone():
    network, x = made("images out")
    expected = jacobian_norm(network, x)
    x[1, 0, 0, 0] = torch.nan

    norms = jacobian_norm(network, x)

    assert norms.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(norms[2:], expected[2:])


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("size", [4, 40])
def test_squares_that_leave_the_range_of_float32_do_no_harm(scale, size):
    norms = jacobian_norm(lambda x: scale * x, torch.ones(2, size))

    assert norms.tolist() == pytest.approx([scale, scale], rel=1e-5)


@pytest.mark.parametrize("size", [4, 40])
def test_functions_that_do_not_depend_on_their_argument_do_not_stretch_it(size):
    bias = torch.ones(size, requires_grad=True)

    assert jacobian_norm(lambda x: bias.expand(2, size) * 2, torch.ones(2, size)).tolist() == [0, 0]
    assert jacobian_norm(torch.relu, -torch.ones(2, size)).tolist() == [0, 0]
    assert jacobian_norm(lambda x: x.sum(1), torch.ones(0, size)).shape == (0,)


def test_a_kink_may_be_above_the_truth_as_documented():
    def zero(x):
        return torch.relu(x) - torch.relu(-x) - x

    assert jacobian_norm(zero, torch.tensor([[0.0], [1.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("fn", "x", "error", "message"),
    [
        (torch.sin, 3, TypeError, "`x` must be a tensor of real floating-point numbers, got int"),
        (torch.sin, torch.ones(2, 2).long(), TypeError, "`x` must be a tensor .* got torch.int64"),
        (torch.sin, torch.tensor(1.0), ValueError, "`x` must have one row for each sample"),
        (lambda x: {"logits": x}, torch.ones(2, 2), TypeError, r"`fn\(x\)` must be a tensor .* got dict"),
        (lambda x: x + 1j, torch.ones(2, 2), TypeError, r"`fn\(x\)` must be a tensor .* got torch.complex64"),
        (torch.sum, torch.ones(2, 2), ValueError, r"`fn\(x\)` must have one row for each sample"),
        (
            torch.t,
            torch.ones(2, 3),
            ValueError,
            r"`fn` must return one row for each of the 2 samples, got shape \(3, 2\)",
        ),
        (lambda x: x.detach(), torch.ones(2, 3), ValueError, "`fn` must be differentiable by autograd"),
    ],
)
def test_functions_without_a_jacobian_are_refused(fn, x, error, message):
    with pytest.raises(error, match=message):
        jacobian_norm(fn, x)


@pytest.mark.parametrize(("iterations", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_iterations_are_counted(iterations, error):
    with pytest.raises(error, match="`iterations` must be an int >= 1"):
        jacobian_norm(torch.sin, torch.ones(1, 1), iterations=iterations)
