"""Averages of predictions against NumPy and SciPy."""

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats

from lightning_reg.ensemble import average_predictions, summarize_predictions

RANDOM = np.random.default_rng(0)
PROBABILITIES = RANDOM.dirichlet(np.ones(4), size=(6, 5))  # six predictions of five rows


def tensors(array):
    return [torch.tensor(item) for item in array]


def test_the_arithmetic_mean_agrees_with_numpy():
    values = RANDOM.normal(size=(3, 5, 2))

    actual = average_predictions(tensors(values))

    np.testing.assert_allclose(actual, values.mean(0))


def test_the_geometric_mean_agrees_with_scipy_normalised():
    mean = stats.gmean(PROBABILITIES, axis=0)

    actual = average_predictions(tensors(PROBABILITIES), "geometric")

    np.testing.assert_allclose(actual, mean / mean.sum(1, keepdims=True))


@pytest.mark.parametrize("dim", [1, -1])
def test_classes_are_where_dim_says(dim):
    probabilities = np.moveaxis(RANDOM.dirichlet(np.ones(3), size=(6, 5, 7)), -1, 2) if dim == 1 else PROBABILITIES
    axis = 2 if dim == 1 else -1
    mean = stats.gmean(probabilities, axis=0)

    summary = summarize_predictions(torch.tensor(probabilities), "geometric", dim=dim)

    np.testing.assert_allclose(summary.mean, mean / mean.sum(axis - 1 if dim == 1 else -1, keepdims=True))
    assert summary.entropy.shape == summary.mean.shape[:1] + summary.mean.shape[2:]


def test_entropy_and_mutual_information_agree_with_scipy():
    summary = summarize_predictions(tensors(PROBABILITIES))

    mean = PROBABILITIES.mean(0)
    np.testing.assert_allclose(summary.mean, mean)
    np.testing.assert_allclose(summary.std, PROBABILITIES.std(0, ddof=1))
    np.testing.assert_allclose(summary.entropy, stats.entropy(mean, axis=1))
    # The mean divergence of the members from their mean is the same number by another way.
    divergence = special.rel_entr(PROBABILITIES, mean).sum(2).mean(0)
    np.testing.assert_allclose(summary.mutual_information, divergence)


def test_members_that_agree_have_no_mutual_information_and_zeros_are_fine():
    summary = summarize_predictions([torch.tensor([[1.0, 0.0], [0.5, 0.5]])] * 3, "geometric")

    torch.testing.assert_close(summary.mean, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    torch.testing.assert_close(summary.mutual_information, torch.zeros(2))
    torch.testing.assert_close(summary.entropy, torch.tensor([0.0, np.log(2)], dtype=torch.float32))


def test_the_entropy_is_not_negative_if_a_probability_is_rounded_above_1():
    certain = torch.tensor([[1.0078125, 0.0]], dtype=torch.bfloat16)

    assert summarize_predictions([certain, certain]).entropy.tolist() == [0.0]


def test_plain_values_have_a_spread_only():
    summary = summarize_predictions([torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])])

    assert (summary.entropy, summary.mutual_information) == (None, None)
    torch.testing.assert_close(summary.std, torch.tensor([2**0.5, 0.0]))


def test_scalars_are_no_probabilities_even_if_they_add_up_to_1():
    assert summarize_predictions(torch.tensor([0.25, 0.75]), dim=-1).entropy is None


def test_the_geometric_ensemble_over_all_masks_of_one_softmax_layer_is_halved_weights():
    inputs, weight, bias = (torch.tensor(RANDOM.normal(size=shape)) for shape in [(3, 6), (4, 6), (4,)])
    masks = [torch.tensor(mask, dtype=torch.float64) for mask in itertools.product((0, 1), repeat=6)]

    ensemble = average_predictions([torch.softmax((inputs * mask) @ weight.T + bias, 1) for mask in masks], "geometric")

    torch.testing.assert_close(ensemble, torch.softmax(inputs @ (weight / 2).T + bias, 1), rtol=1e-12, atol=0)


def test_half_precision_is_averaged_in_float32():
    mean = average_predictions([torch.full((1000,), 2049.0, dtype=torch.float16), torch.full((1000,), 2050.0).half()])

    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, torch.full((1000,), 2049.0))  # 2049 is 2048 in float16


@pytest.mark.parametrize(
    ("predictions", "arguments", "error", "message"),
    [
        ([], {}, ValueError, "at least one, got none"),
        ([1.0, 2.0], {}, TypeError, r"must be tensors, got \['float', 'float'\]"),
        ([torch.ones(2), torch.ones(3)], {}, ValueError, r"of one shape, got \(2,\), \(3,\)"),
        ([torch.ones(2)], {"aggregate": "harmonic"}, ValueError, "'arithmetic', 'geometric', got 'harmonic'"),
        (
            [torch.ones(2, 2)],
            {"aggregate": "geometric"},
            ValueError,
            r"in dimension 1 of predictions of shape \(2, 2\)",
        ),
        ([torch.ones(2) / 2], {"aggregate": "geometric"}, ValueError, "needs class probabilities"),
        ([torch.tensor([[1.5, -0.5]])], {"aggregate": "geometric"}, ValueError, "needs class probabilities"),
    ],
)
def test_bad_input_is_refused(predictions, arguments, error, message):
    with pytest.raises(error, match=message):
        average_predictions(predictions, **arguments)


def test_one_prediction_has_no_spread():
    with pytest.raises(ValueError, match="at least two"):
        summarize_predictions([torch.ones(2)])
