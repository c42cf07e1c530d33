"""Operations that are linear in one tensor: the bound is the norm of their matrix, or above it where both vary."""

import math

import pytest
import scipy.sparse.linalg
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import Calls, constant, network_of
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at, largest_jacobian


def einsum(equation, *others, at=0):
    return lambda x: torch.einsum(equation, *others[:at], x, *others[at:])


def real(function, *args, **kwargs):
    """Return a transform to complex numbers as one to pairs of real numbers."""
    return lambda x: torch.view_as_real(function(x, *args, **kwargs))


def from_pairs(function, *args, **kwargs):
    return lambda x: function(torch.view_as_complex(x), *args, **kwargs)


def resize(**settings):
    return lambda x: F.interpolate(x, **settings)


WINDOW = torch.hann_window(4, dtype=torch.float64)
SPARSE = torch.eye(4, 4).roll(1, 0).mul(torch.arange(4)).add(torch.eye(4)).double().to_sparse()
BAD, IMAGE = torch.ones(3, 3), torch.ones(1, 1, 3, 3)
INDEX = torch.tensor([0, 2, 2, 1, 2])
PLACES = torch.tensor([[0, 2, 2], [1, 1, 1]])
EXACT = {
    "einsum layer": (einsum("bi,oi->bo", constant(4, 3)), (2, 3)),
    "einsum of three": (einsum("bi,oi,op", constant(4, 3), constant(4, 2)), (2, 3)),
    "einsum from the left": (einsum("oi,...i->...o", constant(4, 3), at=1), (2, 2, 3)),
    "einsum to three": (einsum("bi,ijk->bjk", constant(3, 2, 4)), (2, 3)),
    "einsum tokens": (einsum("bnd,nm->bmd", constant(4, 5)), (2, 4, 3)),
    "einsum heads": (einsum("bhi,hoi->bho", constant(3, 4, 2)), (2, 3, 2)),
    "einsum weights": (einsum("bi,bi->", constant(2, 3)), (2, 3)),
    "einsum sum": (lambda x: torch.einsum("b i -> b", x), (2, 3)),
    "einsum diagonal": (einsum("bii,i->bi", constant(3)), (2, 3, 3)),
    "einsum sum and product": (einsum("bij,j->b", constant(4)), (2, 3, 4)),
    "einsum outer": (einsum("b,ij->ijb", constant(2, 3)), (4,)),
    "einsum of one entry": (einsum("bi,oi->bo", constant(4, 5)), (2, 1)),
    "einsum of a constant entry": (einsum("bi,oi->bo", constant(4, 1)), (2, 3)),
    "einsum lists": (lambda x: torch.einsum(x, [0, 1], constant(3, 4), [1, 2], [2, 0]), (2, 3)),
    "einsum summed dots": (einsum("...i,i->...", constant(3)), (2, 2, 3)),
    "tensordot": (lambda x: torch.tensordot(x, constant(3, 4, 2), dims=([1, 2], [0, 1])), (2, 3, 4)),
    "tensordot count": (lambda x: torch.tensordot(constant(2, 4, 3), x, 1), (3, 2)),
    "inner": (lambda x: torch.inner(x, constant(4, 3)), (2, 3)),
    "inner number": (lambda x: torch.inner(constant(4, 3), x), ()),
    "outer": (lambda x: torch.outer(constant(4), x), (3,)),
    "ger": (lambda x: x.ger(constant(4)), (3,)),
    "kron": (lambda x: torch.kron(x, constant(2, 2)), (2, 3)),
    "vdot": (lambda x: torch.vdot(constant(3), x), (3,)),
    "bilinear": (lambda x: F.bilinear(x, constant(2, 4), constant(5, 3, 4), constant(5)), (2, 3)),
    "bilinear right": (lambda x: F.bilinear(constant(2, 4), x, constant(5, 4, 3)), (2, 3)),
    "cross": (lambda x: torch.linalg.cross(constant(2, 3), x), (2, 3)),
    "addmm": (lambda x: torch.addmm(constant(4), x, constant(3, 4)), (2, 3)),
    "addmm scaled": (lambda x: torch.addmm(constant(4), mat2=constant(3, 4), mat1=x, alpha=-2), (2, 3)),
    "addmm input": (lambda x: torch.addmm(x, constant(2, 3), constant(3, 3), beta=-0.5), (2, 3)),
    "addmv": (lambda x: torch.addmv(constant(4), constant(4, 3), x), (3,)),
    "addr": (lambda x: torch.addr(constant(4, 3), constant(4), x), (3,)),
    "baddbmm": (lambda x: constant(2, 4, 5).baddbmm(x, constant(2, 3, 5)), (2, 4, 3)),
    "addbmm": (lambda x: torch.addbmm(constant(4, 5), constant(2, 4, 3), x, alpha=0.5), (2, 3, 5)),
    "addcmul": (lambda x: torch.addcmul(constant(3), constant(2, 3), x, value=2), (2, 3)),
    "addcdiv": (lambda x: torch.addcdiv(constant(2, 3), x, constant(3), value=0.5), (2, 3)),
    "lerp to a constant": (lambda x: torch.lerp(x, constant(3), constant(3)), (2, 3)),
    "lerp from a constant": (lambda x: torch.lerp(constant(2, 3), x, 0.25), (2, 3)),
    "fft": (real(torch.fft.fft), (2, 5)),
    "fft ortho": (real(torch.fft.fft2, norm="ortho"), (2, 3, 4)),
    "fft forward": (real(torch.fft.fftn, norm="forward", dim=(0, 2)), (2, 3, 4)),
    "padded fft": (real(torch.fft.fft, n=7, dim=0), (5, 2)),
    "cut fft": (real(torch.fft.fft, n=3), (2, 5)),
    "ifft": (from_pairs(lambda z: torch.view_as_real(torch.fft.ifft(z))), (2, 5, 2)),
    "rfft": (real(torch.fft.rfft), (2, 6)),
    "rfft2": (real(torch.fft.rfft2, norm="ortho"), (2, 3, 4)),
    "rfft of one": (real(torch.fft.rfft, n=1), (2, 3)),
    "irfft": (from_pairs(torch.fft.irfft), (2, 4, 2)),
    "irfft odd": (from_pairs(torch.fft.irfft, n=5, norm="ortho"), (2, 3, 2)),
    "irfft of two": (from_pairs(torch.fft.irfft, n=2), (3, 2, 2)),
    "irfftn": (from_pairs(torch.fft.irfftn, norm="forward"), (2, 3, 2)),
    "hfft": (from_pairs(torch.fft.hfft), (2, 4, 2)),
    "ihfft": (lambda x: torch.view_as_real(torch.fft.ihfft(x).resolve_conj()), (2, 6)),
    "shifted": (lambda x: torch.fft.ifftshift(torch.fft.fftshift(x), 1), (2, 5)),
    "FNet": (lambda x: torch.fft.fft(torch.fft.fft(x, norm="ortho"), dim=0, norm="ortho").real, (3, 4)),
    "diff": (lambda x: x.diff(dim=0), (5, 2)),
    "diff of one": (lambda x: torch.cat([torch.diff(x), x], 1), (2, 1)),
    "cumsum": (lambda x: x.cumsum(dim=0), (5, 2)),
    "trapezoid": (lambda x: torch.trapezoid(x, dx=-0.5), (2, 5)),
    "trapezoid at places": (lambda x: torch.trapezoid(x, torch.tensor([0.0, 1.0, 5.0]), dim=0), (3, 2)),
    "trace": (lambda x: torch.trace(x), (3, 4)),
    "diagonal matrix": (lambda x: torch.diag_embed(x).diagonal(0, 0, 2), (2, 3)),
    "nearest": (resize(scale_factor=(2, 3)), (1, 2, 2, 3)),
    "nearest exact": (resize(size=(3, 2), mode="nearest-exact"), (1, 1, 5, 3)),
    "upsample": (nn.Upsample(size=7), (1, 2, 3)),
    "linear": (resize(scale_factor=1.7, mode="linear"), (2, 1, 5)),
    "linear aligned": (resize(size=7, mode="linear", align_corners=True), (1, 2, 4)),
    "bilinear down": (resize(size=(2, 5), mode="bilinear"), (1, 1, 5, 3)),
    "antialias": (resize(size=(2, 3), mode="bilinear", antialias=True), (1, 1, 5, 4)),
    "antialias to one column": (resize(size=(2, 1), mode="bicubic", antialias=True), (1, 1, 5, 4)),
    "UpsamplingBilinear2d": (nn.UpsamplingBilinear2d(scale_factor=2), (1, 1, 3, 4)),
    "bicubic": (resize(scale_factor=(2, 1.5), mode="bicubic"), (1, 1, 4, 3)),
    "bicubic aligned": (nn.Upsample(size=(5, 3), mode="bicubic", align_corners=True), (1, 1, 3, 4)),
    "trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), (1, 1, 2, 3, 2)),
    "recomputed": (resize(scale_factor=1.3, mode="linear", recompute_scale_factor=True), (1, 1, 5)),
    "area": (resize(size=3, mode="area"), (1, 1, 7)),
    "area of images": (resize(size=(3, 2), mode="area"), (1, 1, 4, 5)),
    "scatter": (lambda x: torch.zeros_like(x).scatter(1, INDEX[:3].argsort()[None], x[:1]), (2, 3)),
    "scatter a number": (lambda x: x.scatter(0, PLACES[:1], 3.0), (3, 3)),
    "scatter_add": (lambda x: torch.zeros(2, 3).double().scatter_add(1, PLACES, x), (2, 3)),
    "scatter sum": (lambda x: torch.zeros(3, 3).double().scatter_reduce(0, PLACES, x, "sum"), (2, 3)),
    "index_add": (lambda x: torch.zeros(3, 2).double().index_add(0, INDEX, x, alpha=-2), (5, 2)),
    "index_copy": (lambda x: torch.zeros_like(x).index_copy(0, torch.tensor([2, 0]), x[:2]), (3, 2)),
    "index_put": (lambda x: x.index_put((torch.tensor([0, 1]),), constant(3)), (3, 3)),
    "index_put adds": (lambda x: torch.zeros(3).double().index_put((INDEX,), x, accumulate=True), (5,)),
    "put": (lambda x: torch.zeros(3).double().put(INDEX, x, accumulate=True), (5,)),
    "index_fill": (lambda x: x.index_fill(1, torch.tensor([0]), 2.0), (2, 3)),
    "masked_scatter": (lambda x: torch.zeros(2, 3).double().masked_scatter(constant(2, 3) > 0, x), (6,)),
    "select_scatter": (lambda x: torch.zeros(2, 3).double().select_scatter(x, 0, 1), (3,)),
    "slice_scatter": (lambda x: x.slice_scatter(constant(2, 1), 1, 0, 1), (2, 3)),
    "copied": (lambda x: torch.zeros_like(x).copy_(3 * x), (2, 3)),
    "stacked matrices": (lambda x: constant(4, 5, 2) @ x, (2, 3)),
    "different matrices": (lambda x: x @ constant(4, 3, 5), (4, 2, 3)),
    "vector from the left": (lambda x: constant(3) @ x, (2, 3, 4)),
    "sparse": (lambda x: torch.sparse.mm(SPARSE, x), (4, 2)),
    "sparse operator": (lambda x: SPARSE @ x, (4, 2)),
    "weights of linear": (lambda x: F.linear(constant(2, 3), x, constant(4)), (4, 3)),
    "bias of linear": (lambda x: F.linear(constant(2, 3), constant(4, 3), x), (4,)),
    "solve": (lambda x: torch.linalg.solve(constant(3, 3), x), (3, 2)),
    "triangular": (lambda x: torch.linalg.solve_triangular(constant(3, 3), B=x, upper=True), (3, 2)),
    "cholesky": (lambda x: x.cholesky_solve(constant(3, 3)), (3, 2)),
    "cumulative trapezoid": (lambda x: torch.cumulative_trapezoid(x, dx=0.5), (2, 5)),
    "stft": (lambda x: torch.view_as_real(x.stft(4, 2, window=WINDOW, return_complex=True)), (1, 8)),
    "istft": (from_pairs(torch.istft, 4, 2, window=torch.ones(4).double()), (3, 5, 2)),
    "affine grid": (lambda x: F.affine_grid(x, (1, 1, 2, 3), align_corners=False), (1, 2, 3)),
    "filled": (lambda x: x.clone().fill_(2.0).zero_() + x, (2, 3)),
}
ABOVE = {
    "einsum block": (einsum("bij,jk->bk", constant(3, 4)), (2, 5, 3)),
    "addmm both": (lambda x: torch.addmm(x, x, constant(3, 3), beta=0.5, alpha=2), (2, 3)),
    "addcmul both": (lambda x: torch.addcmul(x, x.flip(0), constant(3)), (2, 3)),
    "lerp": (lambda x: torch.lerp(x, 2 * x.flip(1), constant(2, 3)), (2, 3)),
    "diff of parts": (lambda x: torch.diff(x, n=2, prepend=2 * x[:, :1], append=constant(2, 2)), (2, 4)),
    "cross broadcast": (lambda x: torch.linalg.cross(x, constant(4, 3)), (1, 3)),
    "scatter of both": (lambda x: x.scatter(1, PLACES.argsort(1), 3 * x.flip(1)), (2, 3)),
    "scatter_add of both": (lambda x: x.scatter_add(1, PLACES, x), (2, 3)),
    "index_add of both": (lambda x: x.index_add(0, INDEX, torch.cat([x, x[:2]])), (3, 2)),
    "index_put number": (lambda x: torch.zeros(3, 2).double().index_put((INDEX,), x, accumulate=True), ()),
    "amax": (lambda x: x.scatter_reduce(1, PLACES, 2 * x, "amax"), (2, 3)),
    "means": (lambda x: x.scatter_reduce(1, PLACES, 2 * x, "mean", include_self=False), (2, 3)),
    "index_reduce": (lambda x: x.index_reduce(0, INDEX[:3], x.flip(0), "mean"), (3, 2)),
    "grid_sample": (lambda x: F.grid_sample(x, constant(1, 5, 4, 2), align_corners=False), (1, 2, 3, 3)),
    "masked_scatter of both": (lambda x: x.masked_scatter(constant(2, 3) > 0, x.flip(0)), (1, 3)),
    "std": (lambda x: x.std(1), (2, 5)),
    "std of all": (lambda x: torch.std(x, False), (2, 5)),
    "corrected": (lambda x: x.std(0, correction=2.5), (6, 2)),
    "std and mean": (lambda x: torch.std_mean(x, 1, correction=0), (2, 5)),
    "logaddexp": (lambda x: torch.logaddexp(x, 2 * x.flip(0)) + torch.logaddexp2(x, constant(3)), (2, 3)),
    "hypot": (lambda x: torch.hypot(x, 2 * x.flip(0)), (2, 3)),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (2, 5)),
    "cummax": (lambda x: torch.cummax(x, 1).values + x.cummin(dim=1)[0], (2, 5)),
    "quantile": (lambda x: x.quantile(torch.tensor([0.2, 0.5]).double(), dim=1), (2, 5)),
    "pairwise": (lambda x: F.pairwise_distance(x, 2 * x.flip(0), p=1), (2, 3)),
    "PairwiseDistance": (lambda x: nn.PairwiseDistance(3.0)(x, constant(4, 3)), (1, 3)),
    "cdist": (lambda x: torch.cdist(x, x.flip(0) * 2, p=1), (4, 3)),
    "cdist to constants": (lambda x: torch.cdist(x, constant(5, 3)), (2, 3)),
    "dist": (lambda x: torch.dist(x, constant(3), p=1.5), (2, 3)),
    "erfc": (lambda x: torch.erfc(x) + torch.special.ndtr(x), (3,)),
}


def norm_of_matrix(network, inputs):
    """Return the norm of a map that is linear, but for a constant, column by column."""
    function, vector = flat_function(network, [inputs])
    columns = [function(unit) - function(torch.zeros_like(vector)) for unit in torch.eye(len(vector)).double()]
    return torch.linalg.matrix_norm(torch.stack(columns), 2).item()


@pytest.mark.parametrize("name", EXACT)
def test_what_is_linear_in_one_tensor_gets_the_norm_of_its_matrix(name):
    function, shape = EXACT[name]
    network = network_of(function)
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    report = lipschitz_bound(network, inputs)
    truth = norm_of_matrix(network, inputs)

    assert report.unbounded == ()
    assert truth <= report.value * (1 + 1e-12)
    assert report.value == pytest.approx(truth, rel=2e-5)


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", ABOVE)
def test_no_jacobian_is_above_the_bound(name):
    function, shape = ABOVE[name]
    network = network_of(function)
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    report = lipschitz_bound(network, inputs)
    truth = largest_jacobian(network, [inputs], points=20)

    assert report.unbounded == ()
    assert 0 < truth <= report.value * (1 + 1e-9)
    assert report.value <= 4 * truth


@pytest.mark.parametrize(
    ("function", "attained"),
    [
        (lambda x: x.std(0), torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0])),
        (lambda x: x.logcumsumexp(0), torch.tensor([40.0, 0.0, 0.0, 0.0, 0.0])),
        (lambda x: x.cummin(0)[0], torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.0])),
        (lambda x: torch.hypot(x, torch.zeros(5)), torch.ones(5)),
        (lambda x: torch.logaddexp(x, torch.full((5,), -50.0)), torch.ones(5)),
        (lambda x: F.pairwise_distance(x, torch.zeros(5), p=1), torch.ones(5)),
        (lambda x: torch.dist(x, torch.zeros(5)), torch.ones(5)),
    ],
)
def test_bounds_of_what_is_not_linear_are_attained(function, attained):
    network = Calls(function)
    bound = lipschitz_bound(network, torch.randn(5, dtype=torch.float64)).value

    assert bound == pytest.approx(jacobian_norm_at(*flat_function(network, [attained])), rel=1e-8)


def test_a_large_sparse_matrix_is_bounded_by_its_sums():
    rows = torch.randint(3000, (9000,), generator=torch.Generator().manual_seed(0))
    edges = torch.stack([rows, rows.roll(7)])
    graph = torch.sparse_coo_tensor(edges, constant(9000).abs() / 3, (3000, 3000), check_invariants=True)
    bound = lipschitz_bound(Calls(lambda x: graph @ x), torch.zeros(3000, 1, dtype=torch.float64)).value
    truth = scipy.sparse.linalg.svds(scipy.sparse.coo_array(graph.to_dense().numpy()), 1)[1][0]

    assert truth <= bound <= 3 * truth


def test_a_chain_with_einsum_is_as_tight_as_with_linear_layers():
    first, second = constant(8, 6), constant(5, 8)
    chains = [
        lambda x: F.linear(F.linear(x, first).relu(), second),
        lambda x: torch.einsum("oi,bi->bo", second, torch.einsum("bi,oi->bo", x, first).relu()),
        lambda x: torch.tensordot(torch.inner(x, first).relu(), second, ([1], [1])),
        lambda x: torch.addmm(constant(5), torch.addmm(constant(8), x, first.T).relu(), second.T),
    ]
    values = [lipschitz_bound(Calls(chain), torch.zeros(2, 6, dtype=torch.float64)).value for chain in chains]

    assert values == pytest.approx([values[0]] * 4, rel=1e-6)
    product = math.prod(torch.linalg.matrix_norm(weight, 2).item() for weight in (first, second))
    assert values[0] < 0.9 * product


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    ("function", "name", "reason"),
    [
        (lambda x: torch.einsum("bi,bi->b", x, x), "einsum", "product"),
        (lambda x: torch.tensordot(x, x, 2), "tensordot", "product"),
        (lambda x: torch.kron(x, x), "kron", "product"),
        (lambda x: F.bilinear(x, x, torch.ones(2, 3, 3)), "bilinear", "product"),
        (lambda x: torch.addcmul(x, x, x), "addcmul", "product"),
        (lambda x: torch.addcdiv(x, torch.ones(3), x), "addcdiv", "division"),
        (lambda x: torch.baddbmm(x[None], x[None], x[None]), "baddbmm", "product"),
        (lambda x: torch.lerp(x, 2 * x, x), "lerp", "product"),
        (lambda x: x.scatter(1, x.argsort(1), 2 * x), "scatter", "discontinuous"),
        (lambda x: x.scatter_reduce(1, torch.zeros(3, 3).long(), x, "prod"), "scatter_reduce", "prod"),
        (lambda x: x.roll((x.argmax(),), 0), "roll", "discontinuous"),
        (lambda x: x[:2].narrow(0, x.argmin() // 9, 1), "narrow", "discontinuous"),
        (lambda x: x[:1].std(0), "std", "divides by zero"),
        (
            lambda x: F.grid_sample(torch.ones(1, 1, 3, 3), x[None, None, :, :2], align_corners=False),
            "grid_sample",
            "positions",
        ),
        (lambda x: torch.cdist(x, x, p=0.5), "cdist", "`p` of at least 1, got 0.5"),
        (lambda x: torch.linalg.solve(x, torch.ones(3, 2)), "linalg_solve", "product"),
        (lambda x: torch.cumulative_trapezoid(x.repeat(1, 900)), "cumulative_trapezoid", "too large for its rule"),
    ],
)
def test_what_has_no_bound_says_why(function, name, reason):
    report = lipschitz_bound(Calls(function), torch.rand(3, 3))

    assert report.value == math.inf
    assert any(name == each and reason in why for each, why in report.unbounded)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "function", [einsum("bi,oi->bo", BAD), einsum("bi,i->bi", BAD[1]), lambda x: torch.kron(x, BAD)]
)
def test_a_constant_that_is_not_finite_gives_nan(function, bad):
    with torch.no_grad():
        BAD[1, 1] = bad

    assert math.isnan(lipschitz_bound(Calls(function), torch.zeros(2, 3)).value)
