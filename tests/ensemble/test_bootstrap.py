"""Bootstrap samples."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.ensemble import BootstrapSampler


def test_every_epoch_has_the_same_rows_in_another_order():
    sampler = BootstrapSampler(range(100), seed=3)
    first = list(sampler)
    again = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)

    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == sampler.rows
    assert len(sampler) == len(first) == 100


def test_rows_are_drawn_uniformly_with_replacement():
    counts = Counter(row for seed in range(300) for row in BootstrapSampler(range(50), seed))
    distinct = [len(set(BootstrapSampler(range(1000), seed))) / 1000 for seed in range(30)]

    assert stats.chisquare([counts[row] for row in range(50)]).pvalue > 1e-3
    assert np.mean(distinct) == pytest.approx(1 - (1 - 1 / 1000) ** 1000, abs=0.01)


def test_seeds_give_samples_of_their_own_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()

    samples = [list(BootstrapSampler(range(20), seed)) for seed in range(5)]

    assert len({tuple(sorted(sample)) for sample in samples}) == 5
    assert torch.equal(torch.get_rng_state(), state)


def test_any_dataloader_takes_it():
    data = TensorDataset(torch.arange(10))
    sampler = BootstrapSampler(data, 1)

    rows = [row for (batch,) in DataLoader(data, batch_size=3, sampler=sampler) for row in batch.tolist()]

    assert rows == list(sampler)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "at least one row"),
        ((3,), TypeError, "must have a length"),
        (("text",), TypeError, "not be text, got a str"),
        (([1], -1), ValueError, "`seed` must be an int >= 0, got -1"),
        (([1], 1.0), TypeError, "`seed` must be an int"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        BootstrapSampler(*arguments)
