"""The benchmark of large modules, with a tiny one."""

import pytest
import torch

from benchmarks.scale import SIZES, VARIANTS, LanguageModel, train

pytestmark = pytest.mark.distributed


def test_the_module_has_the_size_of_gpt_2_small():
    with torch.device("meta"):
        module = LanguageModel(SIZES["small"])

    # The count of Hugging Face's GPT2Model, 124,439,808, has biases and norms as this one has.
    assert sum(parameter.numel() for parameter in module.parameters()) == 124_439_808


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_on_two_ranks_and_is_timed(pool, variant):
    for seconds, memory in pool.run(train, variant, "tiny"):
        assert 0 < seconds < 60
        assert memory > 100
