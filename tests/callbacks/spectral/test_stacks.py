"""Stacked experts, experts x out x in: each is a matrix with a norm of its own, against loops with torch.linalg."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_reg import (
    NuclearNormPenalty,
    OrthogonalPenalty,
    SpectralConstraint,
    SpectralNormalization,
    SpectralNormPenalty,
)
from lightning_reg.metrics import SpectralNorm, StableRank
from tests.reference import distance_from_orthonormal, nuclear_norm


class Experts(nn.Module):
    """A layer as in mixtures of experts, and one under a name that says nothing, as transformers has it."""

    def __init__(self):
        super().__init__()
        self.num_experts = 3
        self.weight = nn.Parameter(torch.randn(3, 6, 5) * torch.tensor([0.1, 1.0, 3.0])[:, None, None])
        self.down_proj = nn.Parameter(torch.randn(3, 5, 6) * torch.tensor([2.0, 0.2, 0.7])[:, None, None])

    def forward(self, inputs):
        return run(inputs, self.weight, self.down_proj)


def run(inputs, up, down):
    shares = torch.softmax(inputs[:, :3], 1)
    hidden = torch.tanh(torch.einsum("eoi,bi->beo", up, inputs))
    return torch.einsum("eoi,bei,be->bo", down, hidden, shares)


class Mixture(LightningModule):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def training_step(self, batch, batch_idx):
        return (self.experts(batch) - 3).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


BATCHES = torch.randn(6, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Mixture().double()


def norms(weight):
    return torch.linalg.matrix_norm(weight.detach(), 2)


def trained(trainer_of, module, *callbacks):
    """Return the weights after training, and those before."""
    before = [weight.detach().clone() for weight in module.parameters()]
    trainer = trainer_of(*callbacks, max_epochs=1)
    trainer.fit(module, BATCHES)
    return [weight.detach() for weight in module.parameters()], before


def looped(weights, step):
    """Return weights after a loop of plain SGD, whose steps `step` computes the loss of and ends."""
    raw = [weight.clone().requires_grad_() for weight in weights]
    for batch in BATCHES:
        loss, after = step(batch, raw)
        grads = torch.autograd.grad(loss, raw)
        with torch.no_grad():
            for weight, grad in zip(raw, grads, strict=True):
                weight -= 0.05 * grad
                weight.copy_(after(weight))
    return raw


def normalized(weight):
    return 1.5 * weight / torch.linalg.matrix_norm(weight, 2)[:, None, None]


def clipped(weight):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u * s.clamp(max=0.8)[:, None] @ vh


def scaled(weight):
    return weight * (0.8 / norms(weight)).clamp(max=1)[:, None, None]


def test_normalization_is_that_of_each_expert(trainer_of, module):
    found, before = trained(trainer_of, module, SpectralNormalization(1.5))

    raw = looped(
        before, lambda batch, own: ((run(batch, *map(normalized, own)) - 3).square().mean(), lambda weight: weight)
    )
    for weight, expected in zip(found, raw, strict=True):
        torch.testing.assert_close(norms(weight), torch.full((3,), 1.5).double(), rtol=1e-3, atol=0)
        torch.testing.assert_close(weight, normalized(expected).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("method", "project"), [("clip", clipped), ("rescale", scaled)])
def test_the_constraint_holds_for_each_expert_and_leaves_those_inside(trainer_of, module, method, project):
    found, before = trained(trainer_of, module, SpectralConstraint(0.8, method=method))

    expected = looped(
        [project(w) for w in before], lambda batch, own: ((run(batch, *own) - 3).square().mean(), project)
    )
    for weight, other in zip(found, expected, strict=True):
        assert (norms(weight) <= 0.8 * 1.0001).all()
        torch.testing.assert_close(weight, other.detach(), rtol=0.02, atol=0.01)
    assert norms(found[0])[0] < 0.5 < 0.75 < norms(found[0])[2]
    for index, inside in ((0, 0), (1, 1)):
        torch.testing.assert_close(found[index][inside], expected[index][inside].detach(), rtol=3e-3, atol=1e-4)


def test_matrices_that_are_followed_are_clipped_one_by_one(trainer_of, module, monkeypatch):
    monkeypatch.setattr("lightning_reg.callbacks.spectral.projected._SHORT_SIDE", 2)

    found, before = trained(trainer_of, module, SpectralConstraint(0.8))

    expected = looped(
        [clipped(w) for w in before], lambda batch, own: ((run(batch, *own) - 3).square().mean(), clipped)
    )
    for weight, other in zip(found, expected, strict=True):
        assert (norms(weight) <= 0.8).all()
        torch.testing.assert_close(weight, other.detach(), rtol=0, atol=0.01)


PENALTIES = {
    "spectral": (SpectralNormPenalty, lambda matrix: torch.linalg.matrix_norm(matrix, 2).square()),
    "nuclear": (NuclearNormPenalty, nuclear_norm),
    "orthogonal": (OrthogonalPenalty, distance_from_orthonormal),
}


@pytest.mark.parametrize("mode", ["loss", "grad"])
@pytest.mark.parametrize(("penalty", "term"), PENALTIES.values(), ids=PENALTIES)
def test_a_penalty_is_the_sum_over_experts(trainer_of, module, penalty, term, mode):
    found, before = trained(trainer_of, module, penalty(0.05, mode=mode))

    def step(batch, own):
        terms = sum(term(matrix) for weight in own for matrix in weight)
        return (run(batch, *own) - 3).square().mean() + 0.05 * terms, lambda weight: weight

    for weight, expected in zip(found, looped(before, step), strict=True):
        torch.testing.assert_close(weight, expected.detach(), rtol=0, atol=1e-3)


def test_the_operator_of_the_nuclear_norm_lowers_the_rank_of_each_expert(trainer_of, module):
    found, before = trained(trainer_of, module, NuclearNormPenalty(2.0, mode="proximal"))

    def softened(weight):
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return u * (s - 0.05 * 2.0).clamp(min=0)[:, None] @ vh

    expected = looped(before, lambda batch, own: ((run(batch, *own) - 3).square().mean(), softened))
    for weight, other in zip(found, expected, strict=True):
        torch.testing.assert_close(weight, other.detach())
    assert len(set(torch.linalg.matrix_rank(found[0]).tolist())) > 1


def test_what_is_logged_is_the_largest_norm_and_the_least_rank(module):
    every = [matrix for weight in module.parameters() for matrix in weight.detach()]
    ranks = [matrix.square().sum() / norms(matrix) ** 2 for matrix in every]

    for iterations in (None, 10):
        assert SpectralNorm(iterations=iterations)(module).item() == pytest.approx(max(map(norms, every)).item())
        assert StableRank(iterations=iterations)(module).item() == pytest.approx(min(ranks).item())


def test_a_run_goes_on_where_a_checkpoint_was(trainer_of, module, tmp_path):
    weights = []
    for stop in (False, True):
        torch.manual_seed(0)
        one = Mixture().double()
        if stop:
            trainer = trainer_of(SpectralNormalization(), max_epochs=1)
            trainer.fit(one, BATCHES)
            trainer.save_checkpoint(tmp_path / "half.ckpt")
        trainer = trainer_of(SpectralNormalization(), max_epochs=2)
        trainer.fit(one, BATCHES, ckpt_path=tmp_path / "half.ckpt" if stop else None)
        weights.append([weight.detach().clone() for weight in one.parameters()])

    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_other_tensors_of_three_dimensions_stay_one_matrix(trainer_of, module):
    module.experts.table = nn.Parameter(torch.randn(1, 7, 5).double())
    module.bilinear = nn.Bilinear(4, 5, 3).double()
    flat = [torch.linalg.matrix_norm(w.detach().flatten(1), 2) for w in (module.experts.table, module.bilinear.weight)]

    assert SpectralNorm()(module).item() == pytest.approx(max(*flat, *norms(module.experts.weight)).item())
