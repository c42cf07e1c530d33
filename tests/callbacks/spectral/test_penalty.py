"""The spectral norm penalty: the square of the true norm, with its gradient."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils import prune

from lightning_reg import (
    L2Penalty,
    NuclearNormPenalty,
    OrthogonalPenalty,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
)
from tests.callbacks.spectral.norms import norm
from tests.callbacks.spectral.test_normalization_layers import Plain
from tests.callbacks.spectral.test_normalization_runs import Wide
from tests.models import Gan, Regressor, loader, weights_of
from tests.reference import assert_same_weights, both_modes


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def named(module):
    return [(layer, layer.weight) for layer in (module.network.encoder, module.network.conv, module.network.head)]


def calm(parameters):
    return torch.optim.SGD(parameters, lr=0.02)


class Penalized(Regressor):
    """The same term in plain torch."""

    strength, kind = 0.2, "operator"

    def loss(self, batch):
        penalty = sum(norm(layer, weight, kind=self.kind).square() for layer, weight in named(self))
        return super().loss(batch) + self.strength * penalty


@both_modes
@pytest.mark.parametrize("kind", ["operator", "matrix"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_agrees_with_a_loop_with_the_true_norms(mode, kind, accumulate, fit):
    actual = fit(
        SpectralNormPenalty(0.2, norm=kind, mode=mode),
        module=Regressor(calm).double(),
        data=loader(21, dtype=torch.float64),
        accumulate_grad_batches=accumulate,
    )

    module = Penalized(calm).double()
    module.kind = kind
    optimizer = module.configure_optimizers()
    batches = list(loader(21, dtype=torch.float64))
    for _ in range(2):
        for index, batch in enumerate(batches):
            (module.loss(batch) / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
    assert_same_weights(actual, weights_of(module), rtol=1e-4)


@both_modes
def test_on_weights_of_rank_one_it_is_l2(mode, trainer_of):
    def train(callback):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 4)).double()
        inputs = torch.randn(8, 5, dtype=torch.float64)
        trainer_of(callback, max_epochs=1).fit(Plain(network, inputs))
        return weights_of(network)

    assert_same_weights(train(SpectralNormPenalty(0.3, mode=mode)), train(L2Penalty(0.3, mode=mode)), rtol=1e-9)


class Values(Callback):
    def __init__(self):
        self.pairs = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        metrics = trainer.callback_metrics
        names = ("reg/penalty/spectral_norm", "reg/penalty/l2")
        self.pairs.append([metrics[name].item() for name in names])


@both_modes
def test_the_value_is_logged_and_for_matrices_never_above_l2(mode, fit):
    values, true = Values(), []

    class Module(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            true.append(
                sum(norm(layer, weight.detach(), kind="matrix").square().item() for layer, weight in named(self))
            )

    fit(SpectralNormPenalty(1.0, norm="matrix", mode=mode), L2Penalty(1.0, mode=mode), values, module=Module())

    assert len(values.pairs) == 14
    assert all(0 < spectral <= squares for spectral, squares in values.pairs)
    torch.testing.assert_close([spectral for spectral, _ in values.pairs], true, rtol=2e-3, atol=0)


class Repeated:
    """One batch, many times."""

    def __init__(self, batch, count):
        self.batch, self.count = batch, count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter([self.batch] * self.count)


def test_the_vectors_advance_once_a_step_however_many_backward_passes_it_has(fit):
    module = Regressor().double()
    (batch,) = loader(4, dtype=torch.float64)
    once = fit(
        SpectralNormPenalty(0.2), module=module, data=Repeated(batch, 4), accumulate_grad_batches=2, max_epochs=1
    )

    # The mean gradient of one batch, taken twice, equals the gradient of the batch.
    again = fit(SpectralNormPenalty(0.2), module=Regressor().double(), data=Repeated(batch, 2), max_epochs=1)
    torch.testing.assert_close(once, again, rtol=1e-12, atol=1e-14)


def test_in_manual_optimization_each_network_gets_its_own_term(trainer_of):
    def train(*callbacks):
        gan = Gan()
        trainer_of(*callbacks, max_epochs=2).fit(gan, loader())
        return gan

    plain, penalized = train(), train(SpectralNormPenalty(1.0, select="critic.*", mode="grad"))

    assert norm(penalized.critic[0]).item() < 0.8 * norm(plain.critic[0]).item()


def test_the_remaining_entries_of_a_pruned_weight_count(trainer_of):
    torch.manual_seed(0)
    network = nn.Linear(6, 5).double()
    prune.random_unstructured(network, "weight", 0.5)
    raw, mask = network.weight_orig.detach().clone().requires_grad_(), network.weight_mask
    bias, inputs = network.bias.detach().clone().requires_grad_(), torch.randn(8, 6, dtype=torch.float64)
    trainer_of(SpectralNormPenalty(0.3, mode="grad"), max_epochs=1).fit(Plain(network, inputs))

    optimizer = torch.optim.Adam([bias, raw], lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        data_loss = (nn.functional.linear(inputs, mask * raw, bias) - 1).square().mean()
        (data_loss + 0.3 * torch.linalg.matrix_norm(mask * raw, 2).square()).backward()
        optimizer.step()
    torch.testing.assert_close(network.weight_orig.detach() * mask, mask * raw.detach(), rtol=1e-3, atol=1e-4)


@both_modes
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(mode, trainer_of, tmp_path):
    whole = Regressor()
    trainer_of(SpectralNormPenalty(0.2, mode=mode), max_epochs=4).fit(whole, loader())
    trainer_of(
        SpectralNormPenalty(0.2, mode=mode),
        ModelCheckpoint(tmp_path, "half"),
        max_epochs=2,
        enable_checkpointing=True,
    ).fit(Regressor(), loader())

    resumed = Regressor(seed=4)
    trainer_of(SpectralNormPenalty(0.2, mode=mode), max_epochs=4).fit(
        resumed, loader(), ckpt_path=tmp_path / "half.ckpt"
    )

    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0, atol=0)


def test_a_zero_weight_gets_no_gradient_and_no_nan(trainer_of):
    layer = nn.Linear(5, 4)
    nn.init.zeros_(layer.weight)

    trainer_of(SpectralNormPenalty(1.0), max_epochs=1).fit(Plain(layer, torch.zeros(2, 5)))

    assert layer.weight.eq(0).all()


def test_called_on_tensors_it_is_the_sum_of_squared_norms():
    weights = [torch.diag(torch.tensor([3.0, 1.0])), torch.full((2, 3, 2), 1.0)]

    assert SpectralNormPenalty(0.5).penalty(weights).item() == pytest.approx(9 + 12)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "control",
    [
        SpectralNormPenalty(0.1),
        NuclearNormPenalty(0.1),
        OrthogonalPenalty(0.1),
        SpectralNormalization(),
        SpectralConstraint(1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("weight_norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weights_under_weight_norm_are_refused_by_name(control, weight_norm, fit):
    module = Regressor()
    weight_norm(module.network.encoder)

    with pytest.raises(ValueError, match=r"another parametrization computes .*exclude='network\.encoder\.weight'"):
        fit(control, module=module)

    network = nn.Sequential(weight_norm(nn.Conv1d(4, 4, 3, groups=2), dim=2))
    with pytest.raises(ValueError, match=r"exclude='network\.0\.weight'"):
        fit(control, module=Plain(network, torch.ones(1, 4, 8)))


@both_modes
def test_on_large_layers_training_agrees_with_a_loop_with_exact_norms(mode, trainer_of):
    module, expected = Wide(1e-3), Wide(1e-3)
    trainer_of(SpectralNormPenalty(0.3, mode=mode), max_steps=27).fit(module)

    optimizer = expected.configure_optimizers()
    for index, batch in enumerate(expected.train_dataloader()[:27]):
        optimizer.zero_grad()
        weights = [layer.weight for layer in expected.network if isinstance(layer, nn.Linear)]
        penalty = sum(torch.linalg.matrix_norm(weight, 2).square() for weight in weights)
        (expected.training_step(batch, index) + 0.3 * penalty).backward()
        optimizer.step()
    assert_same_weights(weights_of(module), weights_of(expected), rtol=1e-3)
