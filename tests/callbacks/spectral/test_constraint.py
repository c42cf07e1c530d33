"""The spectral constraint: after every step no norm is above the bound, and weights inside it are not touched."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import prune

from lightning_reg import SpectralConstraint, SpectralNormalization
from tests.callbacks.spectral.norms import dense, norm
from tests.callbacks.spectral.test_normalization_layers import CONVOLUTIONS, Plain, attention, spectral
from tests.models import Gan, Regressor, loader, weights_of
from tests.reference import assert_same_weights

LARGE = 80


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class EachStep(Callback):
    """Keeps what a function tells of the module before the first batch and after each."""

    def __init__(self, function):
        self.function, self.results = function, []

    def on_train_start(self, trainer, pl_module):
        self.results.append(self.function(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.results.append(self.function(pl_module))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def project(weight, bound):
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u * s.clamp(max=bound)) @ vh


def test_matrices_are_projected_after_each_step(fit):
    actual = fit(
        SpectralConstraint(0.6, select=["*.encoder.weight", "*.head.weight"]),
        module=Regressor().double(),
        data=loader(dtype=torch.float64),
    )

    module = Regressor().double()
    optimizer = module.configure_optimizers()
    weights = [module.network.encoder.weight, module.network.head.weight]

    def project_all():
        for weight in weights:
            weight.data.copy_(project(weight.detach(), 0.6))

    project_all()
    for _ in range(2):
        for batch in loader(dtype=torch.float64):
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
            project_all()
    assert_same_weights(actual, weights_of(module), rtol=1e-10)


class Large(nn.Module):
    """Matrices of which exact norms are not computed at every step, and a convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, LARGE), nn.Linear(LARGE, 2 * LARGE)
        self.conv = nn.Conv1d(2, 3, 3, padding=1)

    def forward(self, inputs):
        hidden = torch.tanh(self.second(torch.tanh(self.first(inputs)))).view(-1, 2, LARGE)
        return self.conv(hidden)


@pytest.mark.parametrize("method", ["clip", "rescale"])
@pytest.mark.parametrize("bound", [0.5, 1.5, 10.0])
@pytest.mark.parametrize("lr", [0.3, 0.01])
def test_no_true_norm_is_ever_above_the_bound(method, bound, lr, trainer_of):
    torch.manual_seed(0)
    norms = EachStep(
        lambda module: [norm(getattr(module.network, name)).item() for name in ("first", "second", "conv")]
    )

    trainer_of(SpectralConstraint(bound, method=method), norms, max_epochs=2).fit(
        Plain(Large(), torch.randn(8, 5), lr=lr)
    )

    assert len(norms.results) == 61
    assert max(map(max, norms.results)) <= bound * (1 + 1e-4)
    if bound == 0.5:
        assert min(result[1] for result in norms.results) > 0.45


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("is_tall", [False, True])
def test_hundreds_of_singular_values_at_the_bound_stay_below_it(rate, is_tall, trainer_of):
    # As many as following from step to step cannot tell apart.
    class Pushed(Plain):
        def training_step(self, batch, batch_idx):
            weight, generator = self.network.weight, torch.Generator().manual_seed(batch_idx % 2)
            return (weight * torch.randn(weight.shape, generator=generator)).sum()

        def configure_optimizers(self):
            return torch.optim.Adam(self.network.parameters(), lr=rate)

    layer = nn.Linear(270, 400, bias=False) if is_tall else nn.Linear(400, 270, bias=False)
    nn.init.normal_(layer.weight)
    norms = EachStep(lambda module: spectral(module.network.weight))

    trainer_of(SpectralConstraint(1.0), norms, max_epochs=1).fit(Pushed(layer))

    assert max(norms.results) <= 1 + 1e-4
    assert min(norms.results) > 0.9
    assert torch.linalg.svdvals(layer.weight.detach())[200] > 0.8  # rescaling would shrink all


class Rising(Plain):
    """Pushes a large matrix in two random directions, further in each step: at first slowly."""

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(5)
        left, right = (torch.randn(2, size, generator=generator) for size in self.network.weight.shape)
        push = left.mT @ right / (left.norm() * right.norm())
        return -(push * self.network.weight).sum() * 1e-3 * 1.3 ** min(self.global_step, 30)

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=1.0)


@pytest.mark.parametrize("shape", [(270, 300), (300, 270)])
def test_a_large_matrix_that_is_slow_at_first_is_stopped_at_the_bound(shape, trainer_of):
    layer = nn.Linear(*shape, bias=False)
    start = layer.weight.detach().clone()
    norms = EachStep(lambda module: spectral(module.network.weight))
    slow = EachStep(lambda module: module.network.weight.detach().clone())

    trainer_of(SpectralConstraint(1.5), norms, slow, max_epochs=1).fit(Rising(layer))

    assert max(norms.results) <= 1.5 * (1 + 1e-4)
    assert max(norms.results[-5:]) > 1.4
    # Weights inside are left to the optimizer.
    first = start + sum(1e-3 * 1.3**step for step in range(10)) * (slow.results[1] - start) / 1e-3
    torch.testing.assert_close(slow.results[10], first, rtol=1e-3, atol=1e-6)


def random_matrix_of_norm(largest, rows, columns):
    matrix = torch.randn(rows, columns, dtype=torch.float64)
    return (matrix * largest / torch.linalg.svdvals(matrix)[0]).float()


def one_value_above_many(largest, others, rows, columns):
    u, s, vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return (u * torch.cat([torch.tensor([largest]), torch.full((len(s) - 1,), others)])) @ vh


@pytest.mark.parametrize("made", [(random_matrix_of_norm, 1.01), (one_value_above_many, 1.05, 0.9)])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_large_matrix_outside_that_hardly_moves_is_held_from_the_start_and_when_replaced(
    made, is_replaced, trainer_of
):
    function, *numbers = made
    outside = function(*numbers, 270, 300)
    layer = nn.Linear(300, 270, bias=False)
    with torch.no_grad():
        layer.weight.copy_(random_matrix_of_norm(0.5, 270, 300) if is_replaced else outside)

    class Slow(Plain):
        def training_step(self, batch, batch_idx):
            if batch_idx == 5 and is_replaced:
                self.network.load_state_dict({"weight": outside})
            return 1e-6 * self.network.weight.mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=1.0)

    norms = EachStep(lambda module: spectral(module.network.weight))
    trainer_of(SpectralConstraint(1.0), norms, max_epochs=1, limit_train_batches=8).fit(Slow(layer))

    assert max(norms.results) <= 1 + 1e-5
    assert norms.results[-1] > 0.95


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("saved", [3, 12, 22])
def test_a_resumed_run_of_a_large_matrix_is_the_uninterrupted_one_bit_for_bit(saved, trainer_of, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == saved:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def module(seed):
        torch.manual_seed(seed)
        return Rising(nn.Linear(300, 270, bias=False))

    whole, resumed = module(0), module(1)
    trainer_of(SpectralConstraint(1.5), Save(), max_epochs=1).fit(whole)
    trainer_of(SpectralConstraint(1.5), max_epochs=1).fit(resumed, ckpt_path=tmp_path / "middle.ckpt")

    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_of_a_large_matrix_is_resumed_in_another_precision(trainer_of, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 12:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def module(dtype):
        return Rising(nn.Linear(300, 270, bias=False, dtype=dtype))

    norms = EachStep(lambda module: spectral(module.network.weight))
    trainer_of(SpectralConstraint(1.5), Save(), max_epochs=1).fit(module(torch.float32))
    trainer_of(SpectralConstraint(1.5), norms, max_epochs=1, precision="64-true").fit(
        module(torch.float64), ckpt_path=tmp_path / "middle.ckpt"
    )

    assert 1.4 < max(norms.results) <= 1.5 * (1 + 1e-4)


@pytest.mark.parametrize("lr", [0.1, 0.01])
def test_convolutions_of_many_channels_stay_below_the_bound_at_every_step(lr, trainer_of):
    # So many that no certified bound is computed as long as the estimate is well below.
    network = nn.Sequential(nn.Conv1d(2, 24, 3, padding=1), nn.Tanh(), nn.Conv1d(24, 24, 3, padding=1))
    norms = EachStep(lambda module: norm(module.network[2]).item())

    trainer_of(SpectralConstraint(1.2), norms, max_epochs=1).fit(Plain(network, torch.randn(8, 2, 9), lr=lr))

    assert max(norms.results) <= 1.2 * (1 + 1e-4)
    assert max(norms.results) > 1.05


def test_a_sudden_new_direction_is_seen_at_once(trainer_of):
    layer = nn.Linear(100, 100, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.cat([torch.tensor([0.9]), torch.full((99,), 0.1)])))

    class Jump(Plain):
        def training_step(self, batch, batch_idx):
            # The step adds 2 at entry (1 + batch_idx, 1 + batch_idx), away from the largest singular vector.
            return -2 * self.network.weight[1 + batch_idx, 1 + batch_idx]

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=1.0)

    norms = EachStep(lambda module: spectral(module.network.weight))
    trainer_of(SpectralConstraint(1.0), norms, max_epochs=1).fit(Jump(layer))

    assert max(norms.results) <= 1 + 1e-4
    assert layer.weight.diagonal()[:31].min().item() == pytest.approx(0.9, abs=0.11)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_are_inside_for_images_of_any_size(kind, trainer_of):
    layer, channels = CONVOLUTIONS[kind]
    layer = copy.deepcopy(layer)
    layer.reset_parameters()
    torch.manual_seed(0)
    inputs = torch.randn(4, channels, *[12] * (layer.weight.ndim - 2))

    def norms_of(module):
        sizes = (6, 12) if layer.weight.ndim == 4 else (9, 40)
        return [torch.linalg.matrix_norm(dense(layer, layer.weight.detach(), size), 2).item() for size in sizes]

    norms = EachStep(norms_of)
    trainer_of(SpectralConstraint(0.4), norms, max_epochs=1).fit(Plain(layer, inputs))

    assert max(map(max, norms.results)) <= 0.4 * (1 + 1e-4)
    assert norms.results[-1][-1] > 0.15


def test_weights_inside_are_not_touched(fit):
    torch.testing.assert_close(fit(SpectralConstraint(100.0)), fit(), rtol=0, atol=0)


class Growing(Plain):
    """Multiplies all weights by 1 + lr in each step."""

    def training_step(self, batch, batch_idx):
        return -sum(weight.square().sum() / 2 for weight in self.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


@pytest.mark.parametrize("method", ["clip", "rescale"])
def test_a_large_random_matrix_inside_is_not_touched_while_it_grows(method, trainer_of):
    layer = nn.Linear(300, 270, bias=False)
    with torch.no_grad():
        layer.weight.copy_(random_matrix_of_norm(0.985, 270, 300))
    start = layer.weight.detach().clone()

    trainer_of(SpectralConstraint(1.0, method=method), max_epochs=1).fit(Growing(layer, lr=1e-4))

    torch.testing.assert_close(layer.weight.detach(), start * (1 + 1e-4) ** 30, rtol=1e-5, atol=1e-7)


def test_only_directions_above_the_bound_change(trainer_of):
    layer = nn.Linear(90, 70)
    torch.manual_seed(0)
    before = layer.weight.detach().clone()
    singular = torch.linalg.svdvals(before)
    bound = singular[3].item() * 1.0001

    trainer_of(SpectralConstraint(bound), max_steps=1).fit(Plain(layer, torch.zeros(1, 90), lr=0.0))

    difference = before - layer.weight.detach()
    assert torch.linalg.matrix_rank(difference, atol=1e-4).item() == 3
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach()), singular.clamp(max=bound))


def test_a_step_that_the_scaler_skips_changes_nothing(fit):
    seen = EachStep(weights_of)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**60))

    fit(SpectralConstraint(0.6), seen, plugins=[plugin], max_steps=2)

    torch.testing.assert_close(seen.results[1:3], [seen.results[0]] * 2, rtol=0, atol=0)


class Descending(Plain):
    """Without Adam, whose denominators vanish in fp16."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.3)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16-true", 5e-3), ("16-true", 7e-4), ("bf16-mixed", 1e-4)])
def test_half_precision_is_inside_up_to_rounding(precision, tolerance, trainer_of):
    torch.manual_seed(0)
    norms = EachStep(lambda module: [norm(getattr(module.network, name)).item() for name in ("first", "second")])
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float32)

    trainer_of(SpectralConstraint(0.5), norms, precision=precision, max_epochs=1).fit(
        Descending(Large(), torch.randn(8, 5, dtype=dtype))
    )

    assert max(map(max, norms.results)) <= 0.5 * (1 + tolerance)


@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")  # of torch 2.9
def test_float32_products_in_reduced_precision_do_not_loosen_the_bound(trainer_of):
    torch.manual_seed(0)
    norms = EachStep(lambda module: norm(module.network.second).item())
    torch.set_float32_matmul_precision("medium")
    try:
        trainer_of(SpectralConstraint(0.5), norms, max_epochs=1).fit(Plain(Large(), torch.randn(8, 5)))
    finally:
        torch.set_float32_matmul_precision("highest")

    assert max(norms.results) <= 0.5 * (1 + 1e-4)


def test_weights_far_outside_come_in_exactly(trainer_of):
    layer = nn.Linear(90, 70)
    with torch.no_grad():
        layer.weight.mul_(1e6)
    expected = project(layer.weight.detach(), 1.0)

    trainer_of(SpectralConstraint(1.0), max_steps=1).fit(Plain(layer, torch.zeros(1, 90), lr=0.0))

    assert spectral(layer.weight) <= 1 + 1e-4
    torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["clip", "rescale"])
def test_an_optimizer_may_drop_gradients_within_its_step(method, trainer_of):
    class Dropping(torch.optim.Optimizer):  # as SAM may: `second_step(zero_grad=True)`
        @torch.no_grad()
        def step(self, closure):
            with torch.enable_grad():
                closure()
            for weight in self.param_groups[0]["params"]:
                weight.sub_(weight.grad, alpha=0.1)
                weight.grad = None

    norms = EachStep(lambda module: [norm(getattr(module.network, name)).item() for name in ("first", "conv")])
    module = Growing(Large())
    module.configure_optimizers = lambda: Dropping(module.parameters(), {})
    trainer_of(SpectralConstraint(0.5, method=method), norms, max_epochs=1, limit_train_batches=5).fit(module)

    assert max(map(max, norms.results)) <= 0.5 * (1 + 1e-4)


@pytest.mark.parametrize("make", [SpectralConstraint, SpectralNormalization])
def test_a_weight_that_is_unfrozen_only_within_a_batch_is_held(make, trainer_of):
    class Frozen(Plain):  # as many GANs freeze their critic between its steps
        def training_step(self, batch, batch_idx):
            self.network.second.requires_grad_()
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *args):
            self.network.second.requires_grad_(False)

    module = Frozen(Large(), torch.randn(8, 5))
    module.network.second.requires_grad_(False)
    norms = EachStep(lambda module: spectral(module.network.second.weight))
    trainer_of(make(0.5), norms, max_epochs=1).fit(module)

    assert norms.results[0] > 1  # frozen, and left alone
    assert max(norms.results[1:]) <= 0.5 * (1 + 1e-2)


def test_networks_of_a_gan_are_held_in_turn(trainer_of):
    norms = EachStep(lambda module: [norm(module.critic[index]).item() for index in (0, 2)])

    trainer_of(SpectralConstraint(0.7, select="critic.*"), norms, max_epochs=5).fit(Gan(), loader())

    assert max(map(max, norms.results)) <= 0.7 * (1 + 1e-4)


def test_pruned_weights_are_inside_and_keep_their_zeros(trainer_of):
    torch.manual_seed(0)
    network = nn.Linear(6, 5)
    prune.random_unstructured(network, "weight", 0.5)
    norms = EachStep(lambda module: spectral(module.network.weight_orig * module.network.weight_mask))

    trainer_of(SpectralConstraint(0.3), norms, max_epochs=1).fit(Plain(network, torch.randn(8, 6)))
    network(torch.zeros(1, 6))

    assert max(norms.results) <= 0.3 * (1 + 1e-4)
    assert (network.weight == 0).sum() == 15


def test_attention_is_inside(trainer_of):
    network, *inputs = attention()

    trainer_of(SpectralConstraint(0.3), max_epochs=1).fit(Plain(network, *inputs))

    assert spectral(network.in_proj_weight) <= 0.3 * (1 + 1e-4)
    assert spectral(network.out_proj.weight) <= 0.3 * (1 + 1e-4)


def test_nan_weights_are_left_alone(trainer_of):
    class Broken(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 3 else 1.0)

    network = Large()
    trainer_of(SpectralConstraint(0.5), max_epochs=1).fit(Broken(network, torch.randn(8, 5)))

    assert network.second.weight.isnan().all()


def test_no_decomposition_is_computed_if_nothing_exceeds_the_bound(trainer_of, monkeypatch):
    decompositions = []
    eigvalsh, svd = torch.linalg.eigvalsh, torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", lambda matrix: decompositions.append(matrix.shape) or eigvalsh(matrix)
    )
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: decompositions.append(0) or svd(*args, **kwargs))
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *args, **kwargs: decompositions.append(0) or eigh(*args, **kwargs))

    class Network(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(100, 90), nn.Linear(90, 80))

    trainer_of(SpectralConstraint(5.0), max_epochs=2).fit(Plain(Network(), torch.ones(2, 100), lr=1e-4))

    assert len(decompositions) == 2  # those at the start


def test_the_module_and_the_optimizer_stay_plain(trainer_of):
    module = Regressor(adam)
    names, optimizers = list(module.state_dict()), []

    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            optimizers.extend(trainer.optimizers)
            assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())

    trainer_of(SpectralConstraint(0.5), Keep()).fit(module, loader())

    assert list(module.state_dict()) == names
    assert not optimizers[0]._optimizer_step_pre_hooks
    assert not optimizers[0]._optimizer_step_post_hooks
