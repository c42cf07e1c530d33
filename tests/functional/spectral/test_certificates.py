"""Certified bounds of large matrices: never below the singular values that NumPy finds, and close above."""

import numpy as np
import pytest
import torch

from lightning_reg.functional.spectral.certificates import certified_norm


def matrices():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((1, 1), (3, 50), (50, 3), (64, 64), (200, 90), (90, 200)):
        matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        yield matrix
        yield matrix * (torch.rand(rows, 1, generator=generator) < 0.3)  # pruned
        yield torch.outer(matrix[:, 0], matrix[0])
        yield 1e-40 * matrix
        yield 1e200 * matrix
    yield torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=torch.float64))[0]
    yield torch.diag(torch.linspace(1, 1.001, 80, dtype=torch.float64))
    yield torch.ones(70, 70, dtype=torch.float64)


@pytest.mark.parametrize("matrix", list(matrices()), ids=lambda matrix: "x".join(map(str, matrix.shape)))
def test_it_is_above_the_largest_singular_value_by_half_a_percent_at_most(matrix):
    found = certified_norm(matrix)

    assert found is not None
    truth = np.linalg.svd(matrix.numpy(), compute_uv=False)[0]
    assert truth <= found[0] <= 1.0051 * truth
    rows = matrix.numpy() if len(matrix) <= matrix.shape[1] else matrix.numpy().T
    rows = rows / (found[0] or 1)
    np.testing.assert_allclose(found[1].numpy(), rows @ rows.T, rtol=1e-10, atol=1e-12)


def test_an_estimate_that_is_too_low_is_improved_before_it_is_given_up(monkeypatch):
    from lightning_reg.functional.spectral import certificates

    monkeypatch.setattr(certificates, "_ITERATIONS", 10)
    matrix = torch.randn(200, 210, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    bound, _ = certified_norm(matrix)
    monkeypatch.setattr(certificates, "_TRIES", 1)

    assert 1 <= bound / np.linalg.norm(matrix.numpy(), 2) <= 1.0051
    assert certified_norm(matrix) is None


def test_an_estimate_that_is_too_low_gives_no_bound(monkeypatch):
    from lightning_reg.functional.spectral import certificates

    monkeypatch.setattr(certificates, "_ABOVE", 0.999)

    assert certified_norm(torch.randn(40, 50, generator=torch.Generator().manual_seed(0)).double()) is None


def test_it_is_0_for_zeros():
    assert certified_norm(torch.zeros(4, 3, dtype=torch.float64))[0] == 0
