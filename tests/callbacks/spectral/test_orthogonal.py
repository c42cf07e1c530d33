"""The orthogonal penalty: zero where all singular values are 1, along the dimension that was asked for."""

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_reg import OrthogonalPenalty, Select
from tests.layouts import Convolutions
from tests.models import Regressor, Untrainable, loader
from tests.reference import both_modes


def by_singular_values(matrix):
    """Return the term without a Gram matrix: of each singular value, (s^2 - 1)^2."""
    values = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
    return ((values**2 - 1) ** 2).sum()


SHAPES = [(3, 7), (7, 3), (4, 2, 3), (2, 5, 3, 2), (1, 6)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_value_is_that_of_singular_values_and_the_gradient_that_of_differences(shape, dim):
    weight = torch.randn(shape, dtype=torch.float64)
    direction = torch.randn(shape, dtype=torch.float64)
    penalty, grads = OrthogonalPenalty(1.0, dim=dim), [torch.zeros_like(weight)]

    def value(step):
        return by_singular_values((weight + step * direction).movedim(dim, 0).flatten(1))

    penalty.add_gradient(grads, [weight], 1.0)

    assert penalty.value([weight]).item() == pytest.approx(value(0))
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert (grads[0] * direction).sum().item() == pytest.approx(slope, rel=1e-6)


def test_it_is_zero_at_orthonormal_rows_and_has_no_gradient_there():
    weight = torch.tensor(np.linalg.qr(np.random.default_rng(0).normal(size=(9, 4)))[0]).requires_grad_()
    for some in (weight, weight.T):
        value = OrthogonalPenalty(1.0).value([some])
        (gradient,) = torch.autograd.grad(value, weight)

        assert value.item() < 1e-25
        assert gradient.abs().max() < 1e-12


def test_a_large_layer_in_single_precision_is_summed_exactly():
    weight = torch.randn(1500, 1500) / 30

    assert OrthogonalPenalty(1.0).value([weight]).item() == pytest.approx(by_singular_values(weight), rel=1e-6)


def test_complex_weights():
    weight = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)
    value = OrthogonalPenalty(1.0).value([weight])
    (gradient,) = torch.autograd.grad(value, weight)
    gram = weight @ weight.mH - torch.eye(3)
    by_hand = gram.abs().square().sum()

    assert value.item() == pytest.approx(by_hand.item())
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, weight)[0])


@both_modes
@pytest.mark.parametrize("dim", [0, 1])
def test_dimensions_are_counted_from_the_output_units_whatever_the_layout(trainer_of, mode, dim):
    module = Convolutions()
    first, second, third = (layer.weight.detach().clone() for layer in module.network)
    trainer = trainer_of(OrthogonalPenalty(1.0, dim=dim, mode=mode), max_epochs=1, log_every_n_steps=1)

    trainer.fit(module, loader(4))  # one step

    kernels = (first, second.transpose(0, 1), third.transpose(0, 1))
    expected = sum(by_singular_values(kernel.movedim(dim, 0).flatten(1)) for kernel in kernels)
    assert trainer.callback_metrics["reg/penalty/orthogonal"].item() == pytest.approx(expected, rel=1e-5)


def test_training_with_it_alone_ends_at_orthonormal_rows(fit):
    class Free(Regressor):
        def loss(self, batch):
            return 0.0 * super().loss(batch)

    weights = fit(OrthogonalPenalty(0.1, mode="grad"), module=Free(), max_epochs=30)

    for name in ("encoder", "conv", "head"):
        values = torch.linalg.svdvals(weights[f"network.{name}.weight"].flatten(1))
        torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-4, atol=0)


@both_modes
def test_a_bias_and_a_missing_dimension_are_refused(fit, mode):
    with pytest.raises(ValueError, match=r"OrthogonalPenalty .*'network.encoder.bias' has shape \(7,\)"):
        fit(OrthogonalPenalty(0.1, select=Select(min_ndim=1), mode=mode))
    with pytest.raises(ValueError, match=r"`dim`"):
        fit(OrthogonalPenalty(0.1, dim=2, mode=mode))


def test_it_has_no_operator(fit):
    with pytest.raises(MisconfigurationException, match=r'OrthogonalPenalty with mode="proximal"'):
        fit(OrthogonalPenalty(0.1, mode="proximal"), module=Untrainable())
