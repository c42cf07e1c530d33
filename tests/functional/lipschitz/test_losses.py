"""Losses as functions of the prediction: the bound is attained where a formula is, and never below a gradient."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from lightning_reg.functional import lipschitz_bound
from tests.functional.lipschitz.calls import Calls, constant, network_of
from tests.functional.lipschitz.jacobians import flat_function, jacobian_norm_at, largest_jacobian

CLASSES, OTHERS = torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2])
IGNORED = torch.tensor([2, -100, 1])
SHARES = constant(3, 4).softmax(1)
SIGNS = constant(3, 4).sign()
WEIGHTS = constant(4).abs() + 0.1


def far(targets, classes=4, size=60.0):
    """Return logits that are sure of other classes than the targets."""
    return -size * F.one_hot(targets, classes).double() + size * F.one_hot((targets + 1) % classes, classes)


# A loss, and where the norm of its Jacobian is the bound.
ATTAINED = {
    "cross entropy": (lambda x: F.cross_entropy(x, CLASSES), far(CLASSES)),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), None),
    "weights": (lambda x: F.cross_entropy(x, CLASSES, WEIGHTS), far(CLASSES)),
    "each": (lambda x: F.cross_entropy(x, CLASSES, WEIGHTS, reduction="none"), far(CLASSES)),
    "ignored": (lambda x: F.cross_entropy(x, IGNORED, WEIGHTS), far(CLASSES)),
    "smoothed": (lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.2), far(CLASSES)),
    "one sample": (lambda x: F.cross_entropy(x, CLASSES[0]), far(CLASSES)[0]),
    "pixels": (lambda x: F.cross_entropy(x, CLASSES.expand(2, 3)), far(CLASSES.expand(2, 3)).movedim(-1, 1)),
    "shares": (lambda x: F.cross_entropy(x, SHARES), 60 * F.one_hot(SHARES.argmin(1), 4).double()),
    "nll": (lambda x: F.nll_loss(x, CLASSES, WEIGHTS), constant(3, 4)),
    "nll each": (lambda x: F.nll_loss(x, IGNORED, reduction="none"), constant(3, 4)),
    "nll sum": (nn.NLLLoss(reduction="sum"), None),
    "l1": (lambda x: F.l1_loss(x, torch.zeros(3, 4)), torch.ones(3, 4)),
    "l1 sum": (lambda x: F.l1_loss(torch.zeros(3, 4), x, reduction="sum"), torch.ones(3, 4)),
    "smooth l1": (lambda x: F.smooth_l1_loss(x, torch.zeros(3, 4), beta=0.5), torch.ones(3, 4)),
    "huber": (lambda x: F.huber_loss(x, 0 * SHARES, delta=2.5), 3 * torch.ones(3, 4)),
    "huber each": (lambda x: F.huber_loss(x, 0 * SHARES, reduction="none"), 3 * torch.ones(3, 4)),
    "logits": (lambda x: F.binary_cross_entropy_with_logits(x, 0.0 * SHARES), 60 * torch.ones(3, 4)),
    "positive": (
        lambda x: F.binary_cross_entropy_with_logits(x, (SIGNS + 1) / 2, WEIGHTS, pos_weight=WEIGHTS.flip(0) + 1),
        -60 * SIGNS,
    ),
    "kl": (lambda x: F.kl_div(x, SHARES, reduction="batchmean"), constant(3, 4)),
    "kl of logarithms": (lambda x: F.kl_div(x, SHARES.log(), reduction="sum", log_target=True), constant(3, 4)),
    "kl of repeated rows": (lambda x: F.kl_div(x, SHARES, reduction="batchmean"), constant(1, 4)),
    "kl of repeated rows each": (lambda x: F.kl_div(x, SHARES, reduction="none"), constant(1, 4)),
    "soft margin": (lambda x: F.soft_margin_loss(x, SIGNS), -60 * SIGNS),
    "hinge embedding": (lambda x: F.hinge_embedding_loss(x, SIGNS, margin=200.0), torch.ones(3, 4)),
    "margin ranking": (lambda x: F.margin_ranking_loss(x, 0 * SIGNS, SIGNS, margin=1.0), -60 * SIGNS),
    "multilabel": (lambda x: F.multilabel_soft_margin_loss(x, (SIGNS + 1) / 2, WEIGHTS), -60 * SIGNS),
}
# Where both depend on the input, or no closed form is attained everywhere.
ABOVE = {
    "repeated rows": lambda x: F.hinge_embedding_loss(x[0], SIGNS, margin=50.0, reduction="sum"),
    "repeated rows ranked": lambda x: F.margin_ranking_loss(x[:1], 0 * x[:1], SIGNS, margin=50.0, reduction="sum"),
    "both": lambda x: F.l1_loss(x, 2 * x.flip(0)),
    "both ranked": lambda x: F.margin_ranking_loss(x, 2 * x.flip(0), SIGNS),
    "triplets": lambda x: F.triplet_margin_loss(x, x.flip(0), 2 * x.flip(1), margin=50.0, swap=True),
    "triplet": lambda x: F.triplet_margin_loss(x, SHARES, -SHARES, margin=50.0, p=1, reduction="none"),
    "a network": lambda x: F.cross_entropy((x @ WEIGHTS.diag()).tanh(), CLASSES, label_smoothing=0.1),
}


@pytest.mark.parametrize("name", ATTAINED)
def test_the_bound_of_a_loss_is_attained(name):
    loss, point = ATTAINED[name]
    if isinstance(loss, nn.Module):
        module, point = loss, far(CLASSES)
        loss = lambda x: module(x, CLASSES)  # noqa: E731
    network, inputs = network_of(loss), point.double()
    report = lipschitz_bound(network, inputs)

    assert report.unbounded == ()
    assert report.value == pytest.approx(jacobian_norm_at(*flat_function(network, [inputs])), rel=1e-8)
    assert report.value * (1 + 1e-9) >= largest_jacobian(network, [inputs], points=5)


@pytest.mark.parametrize("name", ABOVE)
def test_no_gradient_of_a_loss_is_above_the_bound(name):
    network, inputs = network_of(ABOVE[name]), constant(3, 4)
    report = lipschitz_bound(network, inputs)
    truth = largest_jacobian(network, [inputs], points=20)

    assert report.unbounded == ()
    assert truth <= report.value * (1 + 1e-9) <= 5 * truth


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda x: F.mse_loss(x, torch.zeros(3, 4)), "square"),
        (lambda x: F.binary_cross_entropy(x.sigmoid(), torch.zeros(3, 4)), "derivative is unbounded"),
        (lambda x: F.cross_entropy(x, x.softmax(1)), "product"),
        (lambda x: F.kl_div(torch.zeros(3, 4), x, reduction="sum"), "product"),
        (lambda x: F.poisson_nll_loss(x, torch.zeros(3, 4)), "derivative is unbounded"),
    ],
)
def test_losses_without_a_bound_say_why(loss, reason):
    report = lipschitz_bound(Calls(loss), torch.zeros(3, 4))

    assert report.value == math.inf
    assert reason in report.unbounded[0][1]
