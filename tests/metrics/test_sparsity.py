"""Shares of zeros, counted by NumPy."""

import pytest
import torch

from lightning_reg.metrics import Sparsity
from tests.metrics.layers import every_layout, layers_of_every_kind, weights_by_name


@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_it_is_the_share_of_small_entries_of_all_weights(threshold):
    module = layers_of_every_kind()
    with torch.no_grad():
        for weight in module.parameters():
            weight[weight.abs() < 0.02] = 0

    share = Sparsity(threshold)(module)

    small = [abs(weight) <= threshold for weight in weights_by_name(module).values()]
    assert 0 < share.item() == pytest.approx(sum(s.sum() for s in small) / sum(s.size for s in small), rel=1e-6)


def test_units_of_zeros_are_the_removable_ones():
    module = layers_of_every_kind()
    with torch.no_grad():
        module["conv2"].weight[1] = 0
        module["conv2"].weight[:, 1] = 0
        module["head"].weight[:5] = 0
        module["up"].weight[:, 0] = 0

    # Transposed convolutions have a row for each input.
    shapes = [w.shape[1::-1] if name == "up" else w.shape[:2] for name, w in weights_by_name(module).items()]
    assert Sparsity(dim=0)(module).item() == pytest.approx(7 / sum(units for units, _ in shapes))
    assert Sparsity(dim=1)(module).item() == pytest.approx(1 / sum(inputs for _, inputs in shapes))


@every_layout
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_memory_layout_does_not_matter(layout, threshold):
    weight = torch.randn(40, 30, 4, 5, generator=torch.Generator().manual_seed(0)).relu()

    expected = (weight.numpy() <= threshold).mean()
    assert Sparsity(threshold)(layout(weight)).item() == pytest.approx(expected, rel=1e-6)


def test_more_zeros_than_float32_can_count():
    metric = Sparsity()
    for _ in range(3):
        metric.update(torch.zeros(4000, 5000))
    metric.update(torch.ones(4000, 5000))

    assert metric.compute().item() == 0.75


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`threshold` must be a finite number >= 0, got -1"):
        Sparsity(-1)
    with pytest.raises(TypeError, match=r"`dim` must be an int or None, got 0\.5"):
        Sparsity(dim=0.5)
    with pytest.raises(ValueError, match="`dim` must be a dimension of every weight, got 3"):
        Sparsity(dim=3)(torch.ones(2, 2))
