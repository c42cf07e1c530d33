"""Weights are measured as the forward pass uses them, and reading them changes nothing."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_reg.metrics import Sparsity, SpectralNorm, WeightNorm
from lightning_reg.metrics.reading import read_layers
from lightning_reg.selection import named_weights


def test_spectral_norm_of_torch_does_not_iterate_and_the_normalized_weight_counts():
    layer = parametrizations.spectral_norm(nn.Linear(9, 5))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    norm = SpectralNorm()(layer)

    weight, *vectors = (before[f"parametrizations.weight.{name}"] for name in ("original", "0._u", "0._v"))
    iterated = torch.linalg.multi_dot([vectors[0], weight, vectors[1]])  # only near the norm of the weight
    assert norm.item() == pytest.approx(torch.linalg.matrix_norm(weight / iterated, 2).item(), rel=1e-6)
    torch.testing.assert_close(layer.parametrizations.weight[0]._u, before["parametrizations.weight.0._u"])
    assert all(part.training for part in layer.modules())


def test_modes_are_restored_one_by_one_also_after_an_error():
    class Failing(nn.Module):
        def forward(self, weight):
            if not self.training and getattr(self, "armed", False):
                raise ZeroDivisionError
            return weight

    layer = nn.Linear(3, 3)
    for _ in range(2):
        parametrize.register_parametrization(layer, "weight", Failing())
    first, second = layer.parametrizations.weight
    first.eval()
    second.armed = True

    with pytest.raises(ZeroDivisionError):
        WeightNorm()(layer)

    assert (first.training, second.training) == (False, True)


def test_the_two_parts_of_weight_norm_are_one_layer():
    layer = parametrizations.weight_norm(nn.Linear(9, 5))

    assert WeightNorm()(layer).item() == pytest.approx(layer.weight.norm().item(), rel=1e-6)


def test_the_cache_of_parametrizations_is_not_filled_with_weights_without_a_graph():
    layer = parametrizations.weight_norm(nn.Linear(9, 5))

    with parametrize.cached():
        WeightNorm()(layer)
        assert layer.weight.requires_grad


def test_pruned_weights_are_read_through_the_mask_as_they_are_now():
    layer = nn.Linear(10, 10)
    prune.random_unstructured(layer, "weight", amount=0.3)
    with torch.no_grad():
        layer.weight_orig.fill_(2.0)  # an optimizer step, after which no forward pass has run

    assert Sparsity()(layer).item() == pytest.approx(0.3)
    assert WeightNorm()(layer).item() == pytest.approx((70 * 4) ** 0.5)


def test_a_parametrization_that_makes_several_parameters_one_is_read_as_a_whole():
    class Outer(nn.Module):
        def forward(self, left, right):
            return left @ right

        def right_inverse(self, weight):
            return weight, torch.eye(weight.shape[1])

    layer = nn.Linear(4, 6)
    parametrize.register_parametrization(layer, "weight", Outer())

    assert WeightNorm()(layer).item() == pytest.approx(layer.weight.norm().item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
def test_the_two_parts_of_the_old_weight_norm_are_one_layer_as_forward_uses_it(dim):
    layer = nn.utils.weight_norm(nn.Linear(9, 5), dim=dim)
    with torch.no_grad():
        layer.weight_g.mul_(3.0)  # an optimizer step, after which no forward pass has run
        layer.weight_v.add_(0.1)

    found = read_layers(named_weights(layer))

    others = {0: 1, 1: 0, None: (0, 1)}[dim]
    expected = layer.weight_g * layer.weight_v / layer.weight_v.norm(dim=others, keepdim=True)
    assert [each.name for each in found] == ["bias", "weight"]
    torch.testing.assert_close(found[1].tensor, expected.detach())
    assert SpectralNorm()(layer).item() == pytest.approx(torch.linalg.matrix_norm(expected, 2).item(), rel=1e-5)


def test_the_old_spectral_norm_does_not_iterate_and_the_normalized_weight_counts():
    layer = nn.utils.spectral_norm(nn.Linear(9, 5))
    u, v = layer.weight_u.clone(), layer.weight_v.clone()

    norm = SpectralNorm()(layer)

    weight = layer.weight_orig.detach()
    expected = torch.linalg.matrix_norm(weight / torch.linalg.multi_dot([u, weight, v]), 2)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close((layer.weight_u, layer.weight_v), (u, v), rtol=0, atol=0)
