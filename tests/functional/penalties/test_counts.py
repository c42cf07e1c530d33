"""Shares of zeros, counted by NumPy."""

import numpy as np
import pytest
import torch

from lightning_reg.functional import sparsity


def weights(dtype=torch.float32):
    """Return a matrix and a convolution with zeros, some of them whole rows and columns."""
    generator = torch.Generator().manual_seed(0)
    matrix, kernel = torch.randn(300, 200, generator=generator), torch.randn(6, 4, 3, 3, generator=generator)
    matrix[matrix.abs() < 0.5] = 0
    matrix[::7] = 0
    matrix[:, 5] = 0
    kernel[2] = 0
    kernel[:, 1] = 0
    return [matrix.to(dtype), kernel.to(dtype)]


def share(arrays, threshold=0.0, dim=None):
    zero = [np.abs(array) <= threshold for array in arrays]
    if dim is not None:
        zero = [z.all(axis=tuple(axis for axis in range(z.ndim) if axis != dim % z.ndim)) for z in zero]
    return sum(z.sum() for z in zero) / sum(z.size for z in zero)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.75])
@pytest.mark.parametrize("dim", [None, 0, 1, -1])
def test_it_is_the_share_that_numpy_counts(dtype, threshold, dim):
    tensors = weights(dtype)

    actual = sparsity(tensors, threshold=threshold, dim=dim)

    expected = share([tensor.double().numpy() for tensor in tensors], threshold, dim)
    assert actual.shape == ()
    assert 0 < expected < 1
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_a_large_weight_is_counted_exactly():
    weight = torch.zeros(5000, 5000)  # more zeros than float32 can count one by one
    weight[0, 0] = 1

    for threshold in (0.0, 1e-3):
        assert 1 - sparsity([weight], threshold=threshold).double().item() == pytest.approx(4e-8, abs=6e-8)
    assert sparsity([weight], dim=0).item() == pytest.approx(4999 / 5000)


def test_weights_that_lie_transposed_in_memory_count_the_same():
    matrix, kernel = weights()
    laid_out = [matrix.t().contiguous().t(), kernel.to(memory_format=torch.channels_last)]

    for settings in ({}, {"threshold": 0.75}, {"dim": 0}):
        assert sparsity(laid_out, **settings) == sparsity([matrix, kernel], **settings)


def test_nan_and_inf_do_not_count_as_zeros_but_minus_zero_does():
    weight = torch.tensor([torch.nan, torch.inf, -0.0, 1.0])

    assert sparsity([weight]).item() == 0.25
    assert sparsity([weight], threshold=0.5).item() == 0.25
    assert sparsity([weight.unsqueeze(1)], dim=0).item() == 0.25


def test_a_complex_entry_is_zero_by_its_modulus():
    weight = torch.tensor([0j, 0.1 + 0.1j, 3j])

    assert sparsity([weight]).item() == pytest.approx(1 / 3)
    assert sparsity([weight], threshold=0.2).item() == pytest.approx(2 / 3)


def test_nothing_to_count_gives_nan():
    assert sparsity([]).isnan()
    assert sparsity([torch.empty(0, 3)]).isnan()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"threshold": -1}, ValueError, "`threshold` must be a finite number >= 0, got -1."),
        ({"dim": 1.0}, TypeError, "`dim` must be an int or None, got 1.0 of type float."),
        ({"dim": True}, TypeError, "`dim` must be an int or None, got True of type bool."),
        ({"dim": 2}, ValueError, r"`dim` must be a dimension of every weight, got 2 for one of shape \(2, 2\)."),
    ],
)
def test_bad_arguments_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        sparsity([torch.ones(2, 2)], **settings)
