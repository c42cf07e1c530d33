"""Certified radii against closed forms, and against an attack that looks for what they exclude."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

from lightning_reg.functional import certified_radius, lipschitz_bound, margin_bounds
from lightning_reg.metrics import CertifiedAccuracy


def classifier(seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), activation(), nn.Linear(12, 4)).double()


def test_the_bound_of_a_margin_is_the_bound_before_the_last_layer_times_the_distance_of_its_rows():
    network, example = classifier(activation=lambda: nn.Softmax(-1)), torch.zeros(1, 6).double()
    before = lipschitz_bound(network[:-1], example).value
    rows = network[-1].weight.detach().numpy()
    bounds = margin_bounds(network, example)
    np.testing.assert_allclose(bounds, before * cdist(rows, rows), rtol=1e-7)
    assert torch.equal(bounds, bounds.T)
    assert not bounds.diagonal().any()
    # Layers that only shift the outputs, or pass them on, do not matter.
    longer = nn.Sequential(network, nn.Dropout(), nn.Identity())
    assert torch.equal(margin_bounds(longer, example), bounds)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_at_the_end_of_a_chain_the_difference_of_rows_is_one_more_matrix_of_it(activation):
    network, example = classifier(activation=activation), torch.zeros(1, 6).double()
    bounds = margin_bounds(network, example)
    before = lipschitz_bound(network[:-1], example).value
    rows = network[-1].weight.detach()
    for first, second in ((0, 1), (2, 3), (3, 0)):
        network[-1] = nn.Linear(12, 1).double()
        network[-1].weight = nn.Parameter((rows[first] - rows[second])[None])
        assert bounds[first, second] == pytest.approx(lipschitz_bound(network, example).value, rel=1e-6)
        assert bounds[first, second] < 0.99 * before * (rows[first] - rows[second]).norm()


def test_many_classes_share_the_multipliers_of_a_chain():
    torch.manual_seed(1)
    network, example = nn.Sequential(classifier()[:-1], nn.Linear(12, 40)).double(), torch.zeros(1, 6).double()
    bounds = margin_bounds(network, example)
    rows = network[1].weight.detach()
    before = lipschitz_bound(network[:1], example).value
    assert (bounds <= before * torch.cdist(rows, rows) * (1 + 1e-7)).all()
    for first, second in ((0, 1), (2, 39), (7, 5)):
        network[1] = nn.Linear(12, 1).double()
        network[1].weight = nn.Parameter((rows[first] - rows[second])[None])
        least = lipschitz_bound(network, example).value
        assert least * (1 - 1e-3) < bounds[first, second] < 1.5 * least


def test_without_a_linear_last_layer_it_is_root_two_times_the_bound():
    network, example = nn.Sequential(classifier(), nn.Sigmoid()), torch.zeros(2, 6).double()
    value = lipschitz_bound(network, example).value
    np.testing.assert_allclose(margin_bounds(network, example), np.sqrt(2) * value * (1 - np.eye(4)), rtol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_margin_bounds_are_exactly_symmetric(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(32, 16), nn.LeakyReLU(2.0), nn.Linear(16, 100), nn.SiLU(), nn.Linear(100, 16))

    bounds = margin_bounds(network.double(), torch.zeros(1, 32, dtype=torch.float64))

    assert bounds.isfinite().all()
    assert torch.equal(bounds, bounds.mT)


def test_margin_bounds_are_infinite_where_nothing_is_known_and_nan_where_weights_are():
    class Squared(nn.Module):
        def forward(self, x):
            return x * x

    network = nn.Sequential(Squared(), nn.Linear(3, 3))
    with torch.no_grad():
        network[1].weight[2] = network[1].weight[1]
    bounds = margin_bounds(network, torch.ones(1, 3))
    assert bounds.isinf().sum() == 4
    assert bounds[1, 2] == 0  # equal rows: the difference is constant
    with torch.no_grad():
        network[1].weight[0, 0] = math.nan
    assert margin_bounds(nn.Sequential(nn.Linear(3, 3), network[1]), torch.ones(1, 3))[0, 1].isnan()


def test_no_difference_of_outputs_changes_faster_than_its_bound():
    network = classifier(3)
    bounds = margin_bounds(network, torch.zeros(1, 6).double())
    for point in torch.randn(40, 6).double():
        jacobian = torch.autograd.functional.jacobian(network, point)
        slopes = torch.linalg.vector_norm(jacobian[:, None] - jacobian[None], dim=-1)
        assert (slopes <= bounds * (1 + 1e-12)).all()


def test_the_radius_is_the_least_margin_over_its_bound():
    logits = torch.tensor(
        [[5.0, 3.0, 1.0], [0.0, 0.0, -1.0], [1.0, math.nan, 0.0], [2.0, -1.0, 1.0]], dtype=torch.float64
    )
    bounds = torch.tensor([[0.0, 4.0, 2.0], [4.0, 0.0, 1.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    assert certified_radius(logits, bounds).tolist() == [0.5, 0.0, 0.0, 0.5]
    unknown = bounds.clone()
    unknown[0, 1] = unknown[1, 0] = math.inf
    assert certified_radius(logits, unknown).tolist() == [0.0, 0.0, 0.0, 0.0]
    constant = torch.zeros(3, 3)
    assert certified_radius(logits, constant).tolist() == [math.inf, 0.0, 0.0, math.inf]
    assert certified_radius(torch.ones(2, 1), torch.zeros(1, 1)).tolist() == [math.inf] * 2
    assert not certified_radius(logits, torch.full((3, 3), math.nan)).any()


def test_radii_are_rounded_downwards():
    logits = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    radii = certified_radius(logits, torch.tensor([[0.0, 3.0], [3.0, 0.0]]))
    exact = (logits[:, 0].double() - logits[:, 1].double()).abs() / 3
    assert (radii.double() <= exact).all()
    torch.testing.assert_close(radii.double(), exact, rtol=2e-7, atol=0)


def attacked(network, points, radii, steps=60):
    """Projected gradient ascent on the margins, from random starts in the balls; return the classes in the end."""
    classes = network(points).argmax(1)
    change = torch.randn_like(points)
    change = change / change.norm(dim=1, keepdim=True) * radii[:, None] * torch.rand(len(points), 1).double()
    for _ in range(steps):
        change.requires_grad_()
        logits = network(points + change)
        others = logits.scatter(1, classes[:, None], -math.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - logits.gather(1, classes[:, None])[:, 0]).sum(), change)
        change = change.detach() + gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12) * radii[:, None] / 8
        change = change * (radii / change.norm(dim=1)).clamp_max(1)[:, None]
    return network(points + change).argmax(1)


def test_no_attack_within_the_radius_changes_the_class_but_one_far_outside_does():
    network, points = classifier(), 2 * torch.randn(200, 6).double()
    logits = network(points)
    radii = certified_radius(logits, margin_bounds(network, points[:1]))
    assert (attacked(network, points, radii * (1 - 1e-9)) == logits.argmax(1)).all()
    assert (attacked(network, points, 20 * radii) != logits.argmax(1)).double().mean() > 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: margin_bounds(nn.Conv1d(1, 1, 1), torch.ones(1, 1, 2)), ValueError, "must return logits"),
        (lambda: certified_radius(torch.ones(2, 3), torch.ones(2, 2)), ValueError, r"must have shape \(3, 3\)"),
        (lambda: certified_radius(torch.ones(3), torch.ones(3, 3)), ValueError, "`logits` must have shape"),
        (lambda: certified_radius(torch.ones(2, 2), -torch.ones(2, 2)), ValueError, "must be >= 0, got -1"),
        (lambda: certified_radius([1.0], torch.ones(1, 1)), TypeError, "`logits` must be a tensor"),
        (lambda: CertifiedAccuracy(0.1), TypeError, "`radii` must be a list"),
        (lambda: CertifiedAccuracy(()), ValueError, "`radii` must hold"),
        (lambda: CertifiedAccuracy((0.1, -1.0)), ValueError, "`radii` must be"),
        (
            lambda: CertifiedAccuracy([0.1]).update(torch.ones(2, 2), torch.ones(2), torch.ones(2, 2)),
            TypeError,
            "`target` must be a tensor of classes",
        ),
        (
            lambda: CertifiedAccuracy([0.1]).update(torch.ones(2, 2), torch.ones(3).long(), torch.ones(2, 2)),
            ValueError,
            "`target` must have one class for each of the 2",
        ),
        (
            lambda: CertifiedAccuracy([0.1]).update(torch.ones(2, 2), torch.tensor([1, 2]), torch.ones(2, 2)),
            ValueError,
            "`target` must have classes from 0 to 1 for `logits` of 2 classes, got 1 to 2",
        ),
        (
            lambda: CertifiedAccuracy([0.1]).update(torch.ones(2, 2), torch.tensor([-100, 0]), torch.ones(2, 2)),
            ValueError,
            "got -100 to 0. Leave other samples out",
        ),
    ],
)
def test_bad_arguments_of_certificates_are_errors_with_the_rule(call, error, message):
    with pytest.raises(error, match=message):
        call()
