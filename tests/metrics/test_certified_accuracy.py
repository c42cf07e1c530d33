"""The share of certified samples, its curve, and what it says about digits."""

import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_reg.functional import certified_radius, margin_bounds
from lightning_reg.metrics import CertifiedAccuracy
from tests.functional.lipschitz.test_certificates import attacked


def test_certified_accuracy_counts_right_samples_with_a_greater_radius_over_updates():
    metric = CertifiedAccuracy((0.0, 0.5, 1.0))
    bounds = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0]), bounds)  # radii 0.5 and 1.5
    metric.update(torch.tensor([[4.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0]), bounds)  # radii 2 and 0
    assert metric.compute().tolist() == [0.5, 0.25, 0.25]


def test_certified_accuracy_of_one_radius_is_a_vector_of_one():
    metric = CertifiedAccuracy((0.1,))
    share = metric(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0]), torch.ones(2, 2))
    assert share.tolist() == metric.compute().tolist() == [0.5]


def test_the_robustness_curve_has_the_share_of_each_radius_and_never_more_in_between():
    metric = CertifiedAccuracy((1.0, 0.0, 0.5))
    metric.update(
        torch.tensor([[1.5, 0.0], [0.6, 0.0], [3.0, 0.0], [0.0, 1.0]]), torch.zeros(4).long(), torch.ones(2, 2)
    )
    figure, axes = metric.plot()
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[0, 0.75], [0.5, 0.75], [1, 0.5]]
    assert line.get_drawstyle() == "steps-pre"  # at 0.7 the share of radius 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("radius", "certified accuracy")
    again, same = metric.plot(torch.tensor([0.25, 0.75, 0.5]), axes)
    assert (again, same) == (figure, axes)
    assert axes.get_lines()[1].get_xydata().tolist() == [[0, 0.75], [0.5, 0.5], [1, 0.25]]


def test_a_figure_without_matplotlib_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        CertifiedAccuracy((0.1,)).plot(torch.ones(1))


def test_on_digits_most_images_are_certified_and_attacks_of_200_starts_change_none_of_them():
    images, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = images / 16
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10)).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[:600]), digits[:600]).backward()
        optimizer.step()
    images, digits = images[600:], digits[600:]
    bounds = margin_bounds(network, images[:1])
    logits = network(images).detach()
    shares = CertifiedAccuracy((0.1, 0.25))(logits, digits, bounds)
    assert shares[0] > 0.8
    assert shares[1] > 0.4
    radii = certified_radius(logits, bounds)
    points, within = (tensor[:20].repeat_interleave(200, 0) for tensor in (images, radii))
    classes = logits[:20].argmax(1)[:, None]
    assert (attacked(network, points, within * (1 - 1e-9), steps=10).reshape(20, 200) == classes).all()
    # The attack is not a weak one: within three times the radius it changes most.
    assert (attacked(network, points, 3 * within, steps=10).reshape(20, 200) != classes).any(1).sum() > 10
