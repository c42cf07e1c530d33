"""By how much certified radii fall short, against the formula in NumPy, one pair of classes at a time."""

import numpy as np
import pytest
import torch

from lightning_reg.functional.penalties.margin import margin_shortfall


def by_pairs(logits, classes, rows, gain, radius):
    shortfalls = []
    for own, y in zip(logits, classes, strict=True):
        bounds = gain * np.linalg.norm(rows[y] - rows, axis=1)
        radii = [(own[y] - own[j]) / bounds[j] for j in range(len(own)) if bounds[j] > 0]
        shortfalls.append(max([0.0, *(radius - each for each in radii)]))
    return np.mean(shortfalls)


def sample(seed=0, count=9, classes=4, features=6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    rows = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    return logits, labels, rows, torch.tensor(1.3, dtype=torch.float64)


@pytest.mark.parametrize("radius", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_value_is_that_of_the_formula(radius, classes):
    logits, labels, rows, gain = sample(classes=classes)

    value = margin_shortfall(logits, labels, rows, gain, radius)

    expected = by_pairs(logits.numpy(), labels.numpy(), rows.numpy(), 1.3, radius)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_that_of_the_formula_in_logits_rows_and_gain():
    logits, labels, rows, gain = sample()
    parts = [part.requires_grad_() for part in (logits, rows, gain)]

    margin_shortfall(logits, labels, rows, gain, 0.5).backward()

    for part in parts:
        flat = part.detach().numpy().reshape(-1)
        for index in range(part.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                flat[index] += step
                arrays = (logits.detach().numpy(), labels.numpy(), rows.detach().numpy(), gain.item())
                ends.append(by_pairs(*arrays, 0.5))
                flat[index] -= step
            slope = (ends[0] - ends[1]) / 2e-6
            assert part.grad.reshape(-1)[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_classes_with_equal_rows_never_change_places_and_do_not_count():
    logits, labels, rows, gain = sample()
    rows[2] = rows[1]
    parts = [part.requires_grad_() for part in (logits, rows, gain)]

    value = margin_shortfall(logits, labels, rows, gain, 0.5)
    value.backward()

    expected = by_pairs(logits.detach().numpy(), labels.numpy(), rows.detach().numpy(), 1.3, 0.5)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert all(part.grad.isfinite().all() for part in parts)


@pytest.mark.parametrize("zero", ["rows", "gain"])
def test_a_network_that_is_constant_has_no_shortfall_and_no_gradient(zero):
    logits, labels, rows, gain = sample()
    (rows if zero == "rows" else gain).zero_()
    parts = [part.requires_grad_() for part in (logits, rows, gain)]

    value = margin_shortfall(logits, labels, rows, gain, 0.5)
    value.backward()

    assert value == 0
    assert all((part.grad == 0).all() for part in parts)


@pytest.mark.parametrize("where", ["logits", "rows", "gain"])
def test_a_value_that_is_not_a_number_is_not_hidden(where):
    parts = dict(zip(("logits", "labels", "rows", "gain"), sample(), strict=True))
    parts[where].reshape(-1)[0] = torch.nan

    assert margin_shortfall(*parts.values(), 0.5).isnan()


def test_logits_in_half_precision_are_computed_in_float32():
    logits, labels, rows, gain = sample()

    value = margin_shortfall(logits.half(), labels, rows.float(), gain.float(), 0.5)

    expected = by_pairs(logits.half().double().numpy(), labels.numpy(), rows.numpy(), 1.3, 0.5)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
