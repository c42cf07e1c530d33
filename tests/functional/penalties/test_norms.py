"""The penalties that are sums over entries, value and gradient, against NumPy and plain autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_reg.functional import elastic_net, l1_norm, squared_l2_norm

# Each function beside its formula for one array.
FUNCTIONS = {
    "l1_norm": (l1_norm, lambda w: np.abs(w).sum()),
    "squared_l2_norm": (squared_l2_norm, lambda w: (np.abs(w) ** 2).sum()),
    "elastic_net": (
        lambda weights: elastic_net(weights, alpha=0.7, l1_ratio=0.2),
        lambda w: 0.7 * (0.2 * np.abs(w).sum() + 0.4 * (np.abs(w) ** 2).sum()),
    ),
}
# The same formulas for autograd, in double precision.
PLAIN = {
    "l1_norm": lambda weights: sum(w.abs().double().sum() for w in weights),
    "squared_l2_norm": lambda weights: sum(w.abs().double().square().sum() for w in weights),
    "elastic_net": lambda weights: sum((0.14 * m + 0.28 * m * m).sum() for m in (w.abs().double() for w in weights)),
}
every_function = pytest.mark.parametrize(
    ("function", "formula"), [FUNCTIONS[name] for name in FUNCTIONS], ids=list(FUNCTIONS)
)
every_function_with_gradient = pytest.mark.parametrize(
    ("function", "plain"), [(FUNCTIONS[name][0], PLAIN[name]) for name in FUNCTIONS], ids=list(FUNCTIONS)
)

LARGE = 300_000  # entries: more than any group that the kernels work on at a time


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def wide(tensor: Tensor) -> np.ndarray:
    return (
        tensor.detach()
        .resolve_conj()
        .resolve_neg()
        .to(torch.complex128 if tensor.is_complex() else torch.float64)
        .numpy()
    )


# Tensors of every layout: one list each.
TENSORS: dict[str, Callable[[], list[Tensor]]] = {
    "none": list,
    "empty": lambda: [torch.empty(0), torch.empty(3, 0)],
    "empty among others": lambda: [random(3), torch.empty(0, 2), random(2, 2)],
    "one entry": lambda: [torch.tensor(-2.0)],
    "many": lambda: [random(3, 4), random(5), random(2, 3, 4, 5), torch.tensor(0.5)],
    "large": lambda: [random(LARGE), random(7), random(LARGE // 2)],
    "larger together": lambda: [random(700_000), random(600_000, dtype=torch.float64), random(800_000), random(5)],
    "very many": lambda: [random(50, seed=seed) for seed in range(2000)],
    "transposed": lambda: [random(30, 40).t(), random(600, 500).t()],
    "channels last": lambda: [random(64, 48, 10, 10).to(memory_format=torch.channels_last)],
    "strided": lambda: [random(40, 40)[::3, 5:], random(LARGE * 2)[::2]],
    "expanded": lambda: [random(1, 5).expand(7, 5), random(600, 1).expand(600, 500)],
    "the same twice": lambda: [random(5)] * 2,
    "frozen": lambda: [random(5).requires_grad_(False)],
    "float64": lambda: [random(5, dtype=torch.float64)],
    "mixed": lambda: [random(5, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)],
    "complex": lambda: [random(5, 5, dtype=torch.complex64), random(3)],
    "conjugate": lambda: [random(5, 5, dtype=torch.complex128).conj()],
    "an imaginary part": lambda: [random(5, dtype=torch.complex128).conj().imag],
}
every_layout = pytest.mark.parametrize("tensors", TENSORS.values(), ids=list(TENSORS))


# Values


@every_layout
@every_function
def test_the_value_agrees_with_numpy(function, formula, tensors):
    value = function(tensors())

    assert value.shape == ()
    np.testing.assert_allclose(value.item(), sum(formula(wide(tensor)) for tensor in tensors()), rtol=1e-5)


def test_the_norms_agree_with_torch_linalg():
    weights = [random(20, 30, dtype=torch.float64), random(40, dtype=torch.float64)]
    vector = torch.cat([weight.flatten() for weight in weights])

    torch.testing.assert_close(l1_norm(weights), torch.linalg.vector_norm(vector, 1))
    torch.testing.assert_close(squared_l2_norm(weights), torch.linalg.vector_norm(vector) ** 2)
    torch.testing.assert_close(squared_l2_norm(weights[:1]), torch.linalg.matrix_norm(weights[0]) ** 2)


@pytest.mark.parametrize(
    "layout", [lambda w: w, lambda w: w.t(), lambda w: w.view(500, 500, 10, 10).to(memory_format=torch.channels_last)]
)
@every_function
def test_25_million_entries_are_summed_exactly_to_rounding(function, formula, layout):
    weights = [layout(random(5000, 5000))]

    np.testing.assert_allclose(function(weights).item(), formula(wide(weights[0])), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_function
def test_half_precision_weights_are_summed_in_float32(function, formula, dtype):
    # In float16 both the sum of the ones and 300 ** 2 are infinite; bfloat16 has no 70 000.
    weights = [torch.ones(70_000, dtype=dtype), torch.full((9,), 300.0, dtype=dtype)]

    value = function(weights)

    assert value.dtype == torch.float32
    np.testing.assert_allclose(value.item(), sum(formula(wide(weight)) for weight in weights), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
        ([torch.complex64], torch.float32),
        ([torch.complex128], torch.float64),
    ],
)
@every_function
def test_the_value_is_real_and_of_the_widest_precision(function, formula, dtypes, expected):
    assert function([random(3, dtype=dtype) for dtype in dtypes]).dtype == expected


@every_function
def test_generators_and_module_parameters_are_lists_too(function, formula):
    module = nn.Linear(3, 4)
    expected = sum(formula(wide(parameter)) for parameter in module.parameters())

    np.testing.assert_allclose(function(module.parameters()).item(), expected, rtol=1e-6)
    np.testing.assert_allclose(function(w for w in module.parameters()).item(), expected, rtol=1e-6)
    np.testing.assert_allclose(function({"a": module.weight, "b": module.bias}.values()).item(), expected, rtol=1e-6)


@every_function
def test_values_that_are_not_finite_show(function, formula):
    assert function([torch.tensor([1.0, float("nan")])]).isnan()
    assert function([torch.tensor([1.0, float("-inf")]), torch.ones(3)]).item() == float("inf")


# Gradients


def gradients(function: Callable[[list[Tensor]], Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [weight.detach().clone().requires_grad_() for weight in weights]
    return torch.autograd.grad(3 * function(leaves), leaves)


@pytest.mark.parametrize("tensors", [TENSORS[name] for name in TENSORS if name != "none"])
@every_function_with_gradient
def test_the_gradient_agrees_with_plain_autograd(function, plain, tensors):
    weights = tensors()

    for actual, weight, expected in zip(gradients(function, weights), weights, gradients(plain, weights), strict=True):
        assert (actual.dtype, actual.shape) == (weight.dtype, weight.shape)
        torch.testing.assert_close(actual, expected)


@every_function_with_gradient
def test_finite_differences_confirm_gradient_and_second_gradient(function, plain):
    weights = [random(3, 2, dtype=dtype).requires_grad_() for dtype in (torch.float64, torch.complex128)]

    assert torch.autograd.gradcheck(lambda *leaves: function(leaves), weights)
    assert torch.autograd.gradgradcheck(lambda *leaves: function(leaves), weights)


@pytest.mark.parametrize("zero", [0.0, -0.0, 0j])
@every_function_with_gradient
def test_the_subgradient_at_zero_is_zero(function, plain, zero):
    (gradient,) = gradients(function, [torch.tensor([zero, zero, 1.0 + zero])])

    assert gradient[:2].tolist() == [0, 0]
    assert gradient[2] != 0


@every_function_with_gradient
def test_frozen_weights_count_but_get_no_gradient(function, plain):
    frozen, trained = random(3), random(4).requires_grad_()

    function([frozen, trained]).backward()

    assert frozen.grad is None
    torch.testing.assert_close(trained.grad, gradients(plain, [trained])[0] / 3)
    assert not function([frozen]).requires_grad


@every_function_with_gradient
def test_a_weight_given_twice_gets_both_gradients(function, plain):
    weight = random(3).requires_grad_()

    function([weight, weight]).backward()

    torch.testing.assert_close(weight.grad, 2 * gradients(plain, [weight])[0] / 3)


@every_function_with_gradient
def test_the_graph_of_many_small_weights_is_one_node(function, plain):
    weights = [random(3).requires_grad_() for _ in range(50)]

    value = function(weights)  # owns its node
    node = value.grad_fn

    while len(node.next_functions) == 1:  # a factor or a sum of one term
        ((node, _),) = node.next_functions
    assert {parent.variable for parent, _ in node.next_functions if parent} == set(weights)


@every_function_with_gradient
def test_gradients_of_gradients_can_be_trained_on(function, plain):
    weight = random(5).requires_grad_()

    def squared_gradient(penalty):
        (gradient,) = torch.autograd.grad(penalty([weight]), weight, create_graph=True)
        return torch.autograd.grad((gradient**2 + gradient * weight).sum(), weight)[0]

    torch.testing.assert_close(squared_gradient(function), squared_gradient(plain))


# With the rest of torch


@every_function_with_gradient
def test_torch_func_differentiates_and_vectorises(function, plain):
    ensemble = random(4, 3, 2)

    values = torch.func.vmap(lambda weight: function([weight]))(ensemble)
    slopes = torch.func.vmap(torch.func.grad(lambda weight: function([weight])))(ensemble)

    torch.testing.assert_close(values.double(), torch.stack([plain([weight]) for weight in ensemble]))
    torch.testing.assert_close(slopes, torch.stack(gradients(plain, list(ensemble))) / 3)


@every_function_with_gradient
def test_members_of_an_ensemble_may_share_weights_and_lie_along_any_dimension(function, plain):
    own, shared = random(3, 4), random(5)

    values = torch.func.vmap(lambda *weights: function(weights), in_dims=(1, None))(own, shared)

    torch.testing.assert_close(values.double(), torch.stack([plain([member, shared]) for member in own.t()]))


@every_function_with_gradient
def test_autocast_lowers_no_precision(function, plain):
    weights = [random(200, 200)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = function(weights)
        (gradient,) = gradients(function, weights)

    torch.testing.assert_close(value.double(), plain(weights), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, gradients(plain, weights)[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_function_with_gradient
def test_without_autograd_there_is_a_value_all_the_same(function, plain, mode):
    weights = [random(3).requires_grad_()]
    with mode():
        value = function(weights)

    assert not value.requires_grad
    torch.testing.assert_close(value.item(), plain(weights).item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tensors", ["many", "mixed", "complex", "empty among others", "transposed"])
@every_function_with_gradient
def test_a_compiler_sees_one_graph_with_the_same_value_and_gradient(function, plain, tensors):
    torch.compiler.reset()  # every case is the first compilation, none a recompilation for other types
    # "aot_eager" traces forward and backward as the real backend does, without a C++ compiler.
    compiled = torch.compile(lambda weights: 2 * function(weights), fullgraph=True, backend="aot_eager")
    weights = [*TENSORS[tensors](), torch.zeros(3)]

    torch.testing.assert_close(compiled(weights).item(), 2 * plain(weights).item(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(compiled, weights), gradients(lambda leaves: 2 * plain(leaves), weights))


# Properties

entries = st.floats(-100, 100, width=32)
vectors = st.lists(entries, min_size=1, max_size=12)


def float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(vectors, st.floats(-10, 10))
def test_scaling_the_weights_scales_the_norms(values, scale):
    weights = float64(values)

    torch.testing.assert_close(l1_norm([scale * weights]), abs(scale) * l1_norm([weights]))
    torch.testing.assert_close(squared_l2_norm([scale * weights]), scale**2 * squared_l2_norm([weights]))


@given(st.lists(st.tuples(entries, entries), min_size=1, max_size=12))
def test_the_norms_meet_the_triangle_inequality(pairs):
    first, second = (float64(values) for values in zip(*pairs, strict=True))

    for norm in (l1_norm, lambda weights: squared_l2_norm(weights).sqrt()):
        assert norm([first + second]) <= norm([first]) + norm([second]) + 1e-9


@given(vectors, st.lists(st.integers(0, 12), max_size=4))
@every_function
def test_cutting_the_weights_into_more_tensors_changes_nothing(function, formula, values, cuts):
    weights = float64(values)

    pieces = torch.tensor_split(weights, sorted(min(cut, len(values)) for cut in cuts))

    torch.testing.assert_close(function(pieces), function([weights]))
