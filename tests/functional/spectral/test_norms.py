"""The norm of matrices and the estimate for any linear map, against NumPy and SciPy."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds
from torch import nn

from lightning_reg.functional import conv_norm_bound, matrix_norm, operator_norm_estimate
from tests.functional.spectral.layer_maps import kernel_matrix, layer_bound, layer_map

methods = pytest.mark.parametrize("method", ["lanczos", "power"])


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def true_norm(matrix):
    return np.linalg.svd(matrix.detach().numpy().astype(np.complex128), compute_uv=False)[..., 0]


def product_with(matrix):
    return lambda vector: matrix @ vector


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (20, 30), (30, 20), (200, 100), (4, 5, 6), (2, 3, 8, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_the_norm_is_the_largest_singular_value_of_each_matrix(shape, dtype):
    matrices = random(*shape, dtype=dtype)
    norm = matrix_norm(matrices)

    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(norm, true_norm(matrices), rtol=1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-12, 1e12, 1e25, 1e37])
def test_the_norm_of_tiny_and_of_huge_matrices_is_right(scale):
    matrix = random(8, 5).clamp(-3, 3)

    np.testing.assert_allclose(matrix_norm(matrix * scale), true_norm(matrix) * scale, rtol=1e-5)


def test_matrices_of_one_batch_may_differ_by_any_factor():
    matrix = random(6, 4)
    batch = torch.stack([matrix * 1e-25, torch.zeros(6, 4), matrix * torch.nan, matrix, matrix * 1e25])

    np.testing.assert_allclose(matrix_norm(batch), true_norm(matrix) * np.array([1e-25, 0, np.nan, 1, 1e25]), rtol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_has_norm_nan(bad):
    matrix = random(5, 3)
    matrix[2, 1] = bad

    assert matrix_norm(matrix).isnan()
    assert conv_norm_bound(matrix[..., None]).isnan()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
def test_an_empty_matrix_has_norm_zero(shape):
    assert torch.equal(matrix_norm(torch.empty(shape)), torch.zeros(shape[:-2]))


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"`weight` must have two dimensions or more, got shape \(3,\)"):
        matrix_norm(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype):
    matrix = random(40, 30).to(dtype)

    with torch.autocast("cpu", torch.bfloat16):
        norms = [matrix_norm(matrix), conv_norm_bound(matrix[..., None]), matrix_norm(matrix.float())]

    for norm in norms:
        assert norm.dtype == torch.float32
        np.testing.assert_allclose(norm, true_norm(matrix.float()), rtol=2e-5)


@contextmanager
def low_precision(setting):
    backend = {"cuda": torch.backends.cuda.matmul, "mkldnn": torch.backends.mkldnn.matmul}.get(setting)
    if backend is None:
        torch.set_float32_matmul_precision("medium")
    else:
        backend.fp32_precision = "tf32"
    try:
        yield
    finally:
        if backend is None:
            torch.set_float32_matmul_precision("highest")
        else:
            backend.fp32_precision = "none"


@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")  # of torch 2.9
@pytest.mark.parametrize("setting", ["all", "cuda", "mkldnn"])
def test_low_precision_of_products_does_not_reach_the_norm(setting):
    matrix = random(40, 30)
    expected = matrix_norm(matrix)

    with low_precision(setting):
        norm, bound = matrix_norm(matrix), conv_norm_bound(matrix[..., None])
        apply, adjoint, shape = layer_map(nn.Linear(30, 40), matrix.bfloat16())
        estimate, _ = operator_norm_estimate(apply, shape, iterations=20, adjoint=adjoint)

    assert norm.dtype == bound.dtype == torch.float32
    torch.testing.assert_close(norm, expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(estimate, expected, rtol=1e-2, atol=0)
    torch.testing.assert_close(bound, expected, rtol=2e-5, atol=0)


def test_a_norm_compiles_without_a_warning_in_any_precision_of_products():
    compiled = torch.compile(lambda matrix: matrix_norm(2 * matrix), backend="eager")
    matrix = random(4, 3)

    norms = [compiled(matrix)]
    with low_precision("mkldnn"):
        norms.append(compiled(matrix))

    for norm in norms:
        np.testing.assert_allclose(norm, 2 * true_norm(matrix), rtol=1e-6)


def test_matrices_with_many_equal_singular_values_have_a_norm():
    # LAPACK's float32 eigenvalues of some such Gram matrices do not converge.
    for size in range(1, 40):
        kernel = torch.ones(1, 1, size)
        np.testing.assert_allclose(conv_norm_bound(kernel, padding=size - 1, input_size=1), math.sqrt(size), rtol=2e-5)
        np.testing.assert_allclose(matrix_norm(3 * torch.eye(size)), 3, rtol=1e-6)


def test_a_failure_of_lapack_is_mended(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    matrix = random(5, 4)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)

    np.testing.assert_allclose(matrix_norm(matrix), true_norm(matrix), rtol=2e-6)
    np.testing.assert_allclose(matrix_norm(matrix + 0j), true_norm(matrix), rtol=2e-6)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 4, 4)])
def test_the_gradient_of_the_norm_comes_from_the_largest_singular_pair(shape):
    weight = random(*shape, dtype=torch.float64).requires_grad_()
    left, _, right = torch.linalg.svd(weight.detach())

    (gradient,) = torch.autograd.grad(matrix_norm(weight).sum(), weight)

    torch.testing.assert_close(gradient, left[..., :1] @ right[..., :1, :])
    assert torch.autograd.gradcheck(matrix_norm, weight)
    assert torch.autograd.gradgradcheck(matrix_norm, weight)


def test_the_gradient_at_a_zero_matrix_is_zero():
    weight = torch.zeros(3, 4, requires_grad=True)
    kernel = torch.zeros(3, 4, 3, requires_grad=True)

    matrix_norm(weight).backward()
    conv_norm_bound(kernel).backward()

    assert not weight.grad.any()
    assert not kernel.grad.any()


def test_the_gradient_of_tiny_weights_has_norm_one():
    weight = (random(3, 4) * 1e-25).requires_grad_()

    matrix_norm(weight).backward()

    assert weight.grad.norm().item() == pytest.approx(1, rel=1e-5)


@methods
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5), (30, 20), (20, 30)])
def test_enough_iterations_find_the_norm(shape, method):
    matrix = random(*shape, dtype=torch.float64)

    estimate, state = operator_norm_estimate(
        product_with(matrix), shape[1:], iterations=300 if method == "power" else 25, method=method, dtype=torch.float64
    )

    assert estimate.dtype == torch.float64
    np.testing.assert_allclose(estimate, true_norm(matrix), rtol=1e-6)
    np.testing.assert_allclose((matrix @ state).norm(), true_norm(matrix), rtol=1e-4)
    assert estimate <= true_norm(matrix) * (1 + 1e-12)


@methods
@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 50])
def test_an_estimate_is_never_above_the_norm(method, iterations):
    for seed in range(40):
        matrix = random(seed % 9 + 1, seed % 7 + 1, seed=seed)
        if seed % 3 == 0:
            matrix = matrix[:, :1] @ matrix[:1]  # rank one: its Krylov space ends at once
        estimate, _ = operator_norm_estimate(
            product_with(matrix), matrix.shape[1:], iterations=iterations, method=method
        )
        assert estimate <= true_norm(matrix) * (1 + 1e-6)


def test_lanczos_is_never_worse_than_power_iteration_from_the_same_start():
    for seed in range(20):
        matrix = random(30, 20, seed=seed)
        lanczos, power = (
            operator_norm_estimate(product_with(matrix), (20,), iterations=4, method=method)[0]
            for method in ("lanczos", "power")
        )
        assert lanczos >= power * (1 - 1e-6)


@methods
def test_a_start_that_is_orthogonal_to_the_largest_vector_finds_it(method):
    matrix = torch.diag(torch.tensor([5.0, 1.0, 1.0]))
    state = torch.tensor([0.0, 1.0, 0.0])

    for _ in range(5):
        estimate, state = operator_norm_estimate(product_with(matrix), (3,), iterations=2, method=method, state=state)

    assert estimate == pytest.approx(5, rel=1e-5)


@methods
@pytest.mark.parametrize("scale", [1e-35, 1e-25, 1e25, 1e35])
def test_estimates_of_tiny_and_of_huge_maps_are_right(scale, method):
    matrix = torch.diag(torch.tensor([2.0, 1.0, 0.1])) * scale

    estimate, state = operator_norm_estimate(product_with(matrix), (3,), iterations=30, method=method)

    assert estimate == pytest.approx(2 * scale, rel=1e-5)
    assert state.abs().tolist() == pytest.approx([1, 0, 0], abs=1e-5)


@methods
def test_a_zero_map_has_norm_zero_and_leaves_a_state_to_go_on_with(method):
    estimate, state = operator_norm_estimate(lambda x: 0 * x, (4,), iterations=3, method=method)
    assert estimate == 0

    estimate, _ = operator_norm_estimate(lambda x: 3 * x, (4,), iterations=3, method=method, state=state)
    assert estimate == pytest.approx(3)


@methods
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_give_nan_and_do_no_lasting_harm(bad, method):
    matrix = torch.eye(4)
    broken = matrix.clone()
    broken[1, 2] = bad

    estimate, state = operator_norm_estimate(product_with(broken), (4,), iterations=3, method=method)
    assert estimate.isnan()

    estimate, _ = operator_norm_estimate(product_with(matrix), (4,), iterations=3, method=method, state=state)
    assert estimate == pytest.approx(1)


@pytest.mark.parametrize("state", [torch.zeros(3), torch.full((3,), math.nan), torch.tensor([math.inf, 0, 0])])
def test_a_useless_state_counts_as_none(state):
    matrix = random(3, 3)

    torch.testing.assert_close(
        operator_norm_estimate(product_with(matrix), (3,), iterations=2, state=state)[0],
        operator_norm_estimate(product_with(matrix), (3,), iterations=2)[0],
    )


def test_an_estimate_repeats_and_leaves_the_global_generator_alone():
    matrix = random(10, 10)
    before = torch.get_rng_state()

    first = operator_norm_estimate(product_with(matrix), (10,), iterations=2)
    again = operator_norm_estimate(product_with(matrix), (10,), iterations=2)

    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), before)


def test_autograd_finds_the_adjoint_in_inference_mode_too():
    weight = nn.Parameter(random(3, 2, 3))

    with torch.inference_mode():
        found, state = operator_norm_estimate(lambda x: nn.functional.conv1d(x, weight), (2, 9), iterations=4)
    given, _ = operator_norm_estimate(
        lambda x: nn.functional.conv1d(x, weight),
        (2, 9),
        iterations=4,
        adjoint=lambda y: nn.functional.conv_transpose1d(y, weight),
    )

    torch.testing.assert_close(found, given)
    assert not found.requires_grad
    assert not state.is_inference()
    assert weight.grad is None


def test_the_state_decides_on_the_type_of_the_vectors():
    matrix = random(4, 4, dtype=torch.float64)
    state = random(4, dtype=torch.float64)

    estimate, state = operator_norm_estimate(product_with(matrix), (4,), iterations=2, state=state)

    assert estimate.dtype == state.dtype == torch.float64


def test_autocast_does_not_reach_the_map():
    matrix = random(20, 20)
    expected, _ = operator_norm_estimate(product_with(matrix), (20,), iterations=5)

    with torch.autocast("cpu", torch.bfloat16):
        estimate, _ = operator_norm_estimate(product_with(matrix), (20,), iterations=5)

    assert torch.equal(estimate, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"iterations": 0}, ValueError, "`iterations` must be a whole number >= 1"),
        ({"iterations": 2.5}, TypeError, "`iterations` must be a whole number"),
        ({"iterations": True}, TypeError, "`iterations` must be a whole number"),
        ({"method": "qr"}, ValueError, "`method` must be one of 'lanczos', 'power', got 'qr'"),
        ({"state": torch.ones(4)}, ValueError, r"`state` must have the shape \(3,\) of the input, got \(4,\)"),
        ({"apply": lambda x: x.detach()}, ValueError, "`apply` must be differentiable"),
    ],
)
def test_arguments_that_make_no_estimate_are_refused(arguments, error, message):
    arguments = {"apply": lambda x: 2 * x, "input_shape": (3,), "iterations": 2} | arguments

    with pytest.raises(error, match=message):
        operator_norm_estimate(**arguments)


def test_five_warm_steps_every_ten_updates_stay_within_one_percent():
    torch.manual_seed(0)
    inputs = random(256, 4, 6, 6)
    targets = (inputs[:, :2].square().sum((2, 3)) > 36).float()
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    watched = {0: (6, 6), 2: (6, 6), 5: None}
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    states, errors = dict.fromkeys(watched), []

    for step in range(300):
        optimizer.zero_grad()
        batch = slice(step % 4 * 64, step % 4 * 64 + 64)
        nn.functional.binary_cross_entropy_with_logits(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
        if step % 10:
            continue
        for index, size in watched.items():
            apply, adjoint, shape = layer_map(model[index], model[index].weight.detach(), size)
            estimate, states[index] = operator_norm_estimate(
                apply, shape, iterations=5, adjoint=adjoint, state=states[index]
            )
            if step > 50:
                basis = torch.eye(math.prod(shape)).view(-1, *shape)
                matrix = torch.stack([apply(vector).flatten() for vector in basis], 1)
                errors.append(1 - estimate.item() / true_norm(matrix))

    assert max(errors) < 0.01
    assert min(errors) > -1e-6


@pytest.mark.parametrize(
    ("module", "weight"),
    [
        (nn.Linear(7, 4), "weight"),
        (nn.Embedding(9, 3), "weight"),
        (nn.LSTM(5, 3), "weight_hh_l0"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_a_layer_with_a_matrix_is_that_matrix(module, weight):
    weight = getattr(module, weight)
    apply, adjoint, shape = layer_map(module, weight)
    estimate, _ = operator_norm_estimate(apply, shape, iterations=40, adjoint=adjoint)

    np.testing.assert_allclose(estimate, svds(weight.detach().numpy(), k=1, return_singular_vectors=False), rtol=1e-4)
    np.testing.assert_allclose(layer_bound(module, weight).detach(), true_norm(weight), rtol=2e-6)


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.ConvTranspose2d(4, 6, 3, bias=False)]
)
def test_the_kernel_matrix_is_the_one_that_torch_normalizes(make):
    torch.manual_seed(0)
    layer = make()
    weight = layer.weight.detach().clone()
    nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=200)

    torch.testing.assert_close(layer.weight.detach() * true_norm(kernel_matrix(layer, weight)).item(), weight)
