"""The nuclear norm: gradients where autograd has none, and solutions of low rank that are known in closed form."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn, optim

from lightning_reg import L1Penalty, L2Penalty, Linear, NuclearNormPenalty, Select, TargetSparsity, register_step_size
from lightning_reg.functional import factorize
from tests.callbacks.penalties.test_proximal_loop import sgd, train_with_operator
from tests.callbacks.penalties.test_resume import PowerCutError, StopBefore
from tests.layouts import Convolutions
from tests.models import Gan, Regressor, Untrainable, loader, weights_of
from tests.reference import assert_same_weights, both_modes

GENERATOR = np.random.default_rng(0)
# Orthogonal inputs, X^T X = 40 I: the minimum of |X W^T - Y|^2 / 80 + strength |W|_* is Y^T X / 40 with its singular
# values, which are about 2.1, 1.7, 1.2, 0.8, 0.4, less the strength.
INPUTS = np.linalg.qr(GENERATOR.normal(size=(40, 8)))[0] * 40**0.5
TARGETS = INPUTS @ GENERATOR.normal(size=(8, 5)) * np.array([1.0, 0.6, 0.4, 0.3, 0.2]) + GENERATOR.normal(size=(40, 5))


def softened(matrix, threshold):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u * np.maximum(s - threshold, 0)) @ vh


def grad_residual(weight, gradient):
    """Return the distance of -gradient from the subdifferential of the nuclear norm, in bases of all of R^n."""
    u, s, vh = np.linalg.svd(weight)
    rank = (s > 1e-10 * s[0]).sum()
    target = u.T @ -gradient @ vh.T
    target[:rank, :rank] -= np.eye(rank)
    free = np.linalg.svd(target[rank:, rank:], compute_uv=False)
    target[rank:, rank:] = 0
    return np.sqrt((target**2).sum() + (np.maximum(free - 1, 0) ** 2).sum())


class Tasks(LightningModule):
    """Five regressions with orthogonal inputs."""

    def __init__(self, optimizer, weight=None):
        super().__init__()
        self.layer = nn.Linear(8, 5, bias=False).double()
        if weight is not None:
            self.layer.weight.data = torch.tensor(weight)
        self.inputs, self.targets, self.optimizer = torch.tensor(INPUTS), torch.tensor(TARGETS), optimizer

    def training_step(self, batch, batch_idx):
        return (self.layer(self.inputs) - self.targets).square().sum() / 80

    def configure_optimizers(self):
        return self.optimizer(self.parameters())

    def weight(self):
        return self.layer.weight.detach().numpy()


OPTIMIZERS = {
    "SGD": partial(optim.SGD, lr=0.5),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.8, nesterov=True),
    "tensor": partial(optim.SGD, lr=torch.tensor(0.5, dtype=torch.float64)),
    "fused": partial(optim.SGD, lr=0.5, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("strength", [0.5, 1.0, 9.0])
def test_training_ends_at_the_least_squares_with_softened_singular_values(trainer_of, name, strength):
    module = Tasks(OPTIMIZERS[name])
    trainer_of(NuclearNormPenalty(strength, mode="proximal"), max_epochs=1).fit(module, range(100))

    expected = softened(TARGETS.T @ INPUTS / 40, strength)
    assert np.linalg.matrix_rank(expected) < 5
    np.testing.assert_allclose(module.weight(), expected, rtol=0, atol=1e-6)
    assert np.linalg.matrix_rank(module.weight()) == np.linalg.matrix_rank(expected)
    if strength == 9.0:
        assert not module.weight().any()
        assert not np.signbit(module.weight()).any()


def test_known_entries_of_a_matrix_complete_it(trainer_of):
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(9, 1)) @ generator.normal(size=(1, 7))
    known = generator.random((9, 7)) < 0.8

    class Completion(LightningModule):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(9, 7, dtype=torch.float64))

        def training_step(self, batch, batch_idx):
            return 0.5 * ((self.matrix - torch.tensor(truth)) * torch.tensor(known)).square().sum()

        def configure_optimizers(self):
            return optim.SGD(self.parameters(), lr=1.0)

    module = Completion()
    trainer = trainer_of(NuclearNormPenalty(0.1, mode="proximal"), max_epochs=1, log_every_n_steps=1000)
    trainer.fit(module, range(80))

    found = module.matrix.detach().numpy()
    assert np.linalg.matrix_rank(found) == 1
    np.testing.assert_allclose(found, truth, atol=0.02 * np.abs(truth).max())
    # A certificate: minus the gradient is a subgradient.
    assert grad_residual(found, (found - truth) * known / 0.1) < 1e-6
    assert trainer.callback_metrics["reg/optimality/nuclear_norm"] < 1e-6


def residual_at(trainer_of, weight):
    trainer = trainer_of(NuclearNormPenalty(1.0, mode="proximal"), max_epochs=1, log_every_n_steps=1)
    trainer.fit(Tasks(partial(optim.SGD, lr=0.1), weight), range(1))
    return trainer.callback_metrics["reg/optimality/nuclear_norm"].item()


def test_the_residual_is_zero_at_the_solution_and_the_distance_elsewhere(trainer_of):
    solution = softened(TARGETS.T @ INPUTS / 40, 1.0)
    low = GENERATOR.normal(size=(5, 2)) @ GENERATOR.normal(size=(2, 8))

    assert residual_at(trainer_of, solution) < 1e-6
    for weight in (0.5 * solution, np.roll(solution, 1, axis=1), low, 0.1 * low, np.zeros((5, 8)), np.ones((5, 8))):
        gradient = weight - TARGETS.T @ INPUTS / 40
        expected = grad_residual(weight, gradient)
        assert expected > 0.1
        assert residual_at(trainer_of, weight) == pytest.approx(expected, rel=1e-6)


def gradient(weight, dtype=torch.float64):
    penalty, weight = NuclearNormPenalty(1.0), torch.tensor(weight, dtype=dtype, requires_grad=True)
    penalty.value([weight]).backward()
    grads = [torch.zeros_like(weight)]
    penalty.add_gradient(grads, [weight.detach()], 1.0)
    torch.testing.assert_close(grads[0], weight.grad)
    return weight.grad.numpy()


def test_zero_and_repeated_singular_values_have_a_gradient():
    q = np.linalg.qr(GENERATOR.normal(size=(6, 6)))[0]

    assert not gradient(np.zeros((3, 4))).any()
    assert not gradient(np.zeros((0, 4))).any()
    np.testing.assert_allclose(gradient(2 * q), q, atol=1e-12)  # all singular values are 2
    np.testing.assert_allclose(gradient(np.ones((3, 4))), np.full((3, 4), 12**-0.5), atol=1e-12)
    np.testing.assert_allclose(gradient(np.ones((3, 4)), torch.float32), np.full((3, 4), 12**-0.5), atol=1e-6)


def test_weights_that_are_not_finite_have_a_term_that_is_not(fit):
    weight = torch.ones(3, 4)
    weight[0, 0] = torch.inf

    assert NuclearNormPenalty(1.0).value([weight]).isnan()
    grads = [torch.zeros(3, 4)]
    NuclearNormPenalty(1.0).add_gradient(grads, [weight], 1.0)
    assert grads[0].isnan().all()


@pytest.mark.parametrize("silent", [False, True])
def test_a_failure_of_lapack_is_mended_in_double_precision(monkeypatch, silent):
    svd = torch.linalg.svd

    def fails(matrix, **settings):
        if matrix.dtype == torch.float64:
            return svd(matrix, **settings)
        if silent:
            return tuple(torch.full_like(factor, torch.nan) for factor in svd(matrix, **settings))
        raise torch.linalg.LinAlgError("failed to converge")

    weight = torch.randn(4, 3, requires_grad=True)
    u, s, vh = np.linalg.svd(weight.detach().numpy(), full_matrices=False)
    monkeypatch.setattr(torch.linalg, "svd", fails)

    value = NuclearNormPenalty(1.0).value([weight])
    value.backward()

    assert value.item() == pytest.approx(s.sum(), rel=1e-6)
    np.testing.assert_allclose(weight.grad, u @ vh, atol=1e-6)


def test_complex_weights():
    weight = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)
    value = NuclearNormPenalty(1.0).value([weight])
    value.backward()
    u, s, vh = np.linalg.svd(weight.detach().numpy(), full_matrices=False)

    assert value.item() == pytest.approx(s.sum())
    np.testing.assert_allclose(weight.grad.numpy(), u @ vh, atol=1e-12)


@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
def test_rows_are_output_units_whatever_the_layout(fit, mode, trainer_of):
    module = Convolutions()
    before = [layer.weight.detach().clone() for layer in module.network]
    trainer = trainer_of(NuclearNormPenalty(1.0, mode=mode), max_epochs=1, log_every_n_steps=1)

    trainer.fit(module, loader(4))  # one step

    matrices = [before[0].flatten(1), before[1].transpose(0, 1).flatten(1), before[2].transpose(0, 1).flatten(1)]
    expected = sum(np.linalg.svd(matrix.numpy(), compute_uv=False).sum() for matrix in matrices)
    assert trainer.callback_metrics["reg/penalty/nuclear_norm"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_proximal_step_is_that_of_the_loop(fit, accumulate):
    actual = fit(
        NuclearNormPenalty(0.1, mode="proximal", schedule=Linear(0.0, 2.0, 10)),
        module=Regressor(sgd),
        accumulate_grad_batches=accumulate,
    )

    expected = train_with_operator(
        Regressor(sgd), loader(), step, accumulate=accumulate, factor=lambda step: min(step / 10, 1) * 2
    )
    assert_same_weights(actual, expected, rtol=1e-5)
    assert accumulate > 1 or torch.linalg.matrix_rank(actual["network.encoder.weight"]) < 5


def step(weight, factors):
    u, s, vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    return (u @ torch.diag((s - 0.1 * factors.flatten()[0]).clamp(min=0)) @ vh).view(weight.shape).to(weight.dtype)


class Overflowing(Regressor):
    """The first batch, and every third after it, has a loss whose gradient overflows."""

    def loss(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return super().loss(batch) * (1e38 if self.calls % 3 == 1 else 1.0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_shrinks_nothing(fit, fused):
    scaler = partial(torch.amp.GradScaler, "cpu", init_scale=1024.0)
    optimizer = partial(optim.SGD, lr=0.05, fused=fused)

    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler())
    # By hand, the step size is that of a momentum of 0.9: ten times as much.
    actual = fit(NuclearNormPenalty(1.0, mode="proximal"), module=Overflowing(optimizer), plugins=[plugin])

    expected = train_with_operator(
        Overflowing(partial(optim.SGD, lr=0.05)), loader(), step, scaler=scaler(), autocast=torch.float16
    )
    assert_same_weights(actual, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*rounding to bfloat16")
def test_weights_in_half_precision_have_low_rank_up_to_rounding(fit):
    weights = fit(
        NuclearNormPenalty(0.1, mode="proximal"),
        module=Regressor(sgd),
        data=loader(dtype=torch.bfloat16),
        precision="bf16-true",
    )

    values = torch.linalg.svdvals(weights["network.encoder.weight"].float())
    assert weights["network.encoder.weight"].dtype == torch.bfloat16
    assert 0 < values[-1] < 2**-7 * values[0]


def test_a_network_of_low_rank_is_factorized(fit):
    module = Regressor(sgd)
    fit(NuclearNormPenalty(0.1, mode="proximal"), module=module)
    inputs = next(iter(loader()))[0]

    smaller = factorize(module.network)

    assert torch.linalg.matrix_rank(module.network.encoder.weight) == smaller.encoder[0].out_features == 1
    torch.testing.assert_close(smaller(inputs), module.network(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [optim.Adam, optim.RMSprop, optim.RAdam, optim.Adagrad])
def test_optimizers_with_several_step_sizes_within_a_weight_are_refused(fit, optimizer):
    message = rf"NuclearNormPenalty .*one step size .* {optimizer.__name__} has one for each. Use SGD.*mode=\"grad\""

    with pytest.raises(MisconfigurationException, match=message):
        fit(NuclearNormPenalty(0.1, mode="proximal"), module=Untrainable(optimizer))
    fit(NuclearNormPenalty(0.1, mode="grad"), module=Regressor(partial(optimizer, lr=0.01)))


def test_only_the_optimizers_that_hold_its_weights_are(trainer_of):
    module = Gan()  # the critic has SGD, the generator Adam
    trainer_of(NuclearNormPenalty(0.05, select="critic.*", mode="proximal")).fit(module, loader())

    assert all(torch.linalg.matrix_rank(part.weight) < 7 for part in module.critic if isinstance(part, nn.Linear))
    with pytest.raises(MisconfigurationException, match="Adam has one for each"):
        trainer_of(NuclearNormPenalty(0.05, mode="proximal")).fit(Gan(), loader())


class Several(optim.SGD):
    """SGD of a user, with a rate for each entry."""

    def step(self, closure=None):
        return super().step(closure)


def test_step_sizes_of_a_users_optimizer_are_looked_at_when_they_are_known(fit):
    register_step_size(Several, lambda weights, states, group: [torch.full_like(weight, 0.1) for weight in weights])

    with pytest.raises(MisconfigurationException, match=r"one step size .*\(7, 5\).*mode=\"grad\""):
        fit(NuclearNormPenalty(0.1, mode="proximal"), module=Regressor(partial(Several, lr=0.1)))

    register_step_size(Several, lambda weights, states, group: [group["lr"]] * len(weights))
    actual = fit(NuclearNormPenalty(0.1, mode="proximal"), module=Regressor(partial(Several, lr=0.1)))
    assert_same_weights(
        actual, fit(NuclearNormPenalty(0.1, mode="proximal"), module=Regressor(partial(optim.SGD, lr=0.1)))
    )


@pytest.mark.parametrize("other", [L1Penalty(0.1, mode="proximal"), L2Penalty(0.1, mode="proximal")])
def test_no_other_operator_may_have_the_same_weights(fit, other):
    nuclear = NuclearNormPenalty(0.1, mode="proximal")
    for penalties in ((nuclear, other), (other, nuclear)):
        with pytest.raises(MisconfigurationException, match="act on the same weights"):
            fit(*penalties, module=Untrainable())


@both_modes
def test_a_bias_is_refused_by_name(fit, mode):
    with pytest.raises(ValueError, match=r"'network.encoder.bias' has shape \(7,\). Leave it out: `select=Select"):
        fit(NuclearNormPenalty(0.1, select=Select(min_ndim=1), mode=mode))


def test_a_target_share_of_zeros_is_refused(fit):
    with pytest.raises((ValueError, TypeError, MisconfigurationException), match="NuclearNormPenalty"):
        fit(TargetSparsity(NuclearNormPenalty(0.1, mode="proximal"), 0.5))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(trainer_of, tmp_path):
    def train(*callbacks):
        penalty = NuclearNormPenalty(0.05, mode="proximal", schedule=Linear(1.0, 0.5, 1.0))
        return Regressor(sgd), trainer_of(penalty, *callbacks, max_epochs=3)

    module, trainer = train()
    trainer.fit(module, loader())

    stopped, trainer = train(StopBefore(14))
    with pytest.raises(PowerCutError):
        trainer.fit(stopped, loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, trainer = train()
    trainer.fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")

    assert all(torch.equal(weight, weights_of(resumed)[name]) for name, weight in weights_of(module).items())
