"""Those of the hundred random runs that have two ranks, see `tests/integration/test_random_runs.py`."""

import pytest
import torch

from tests.integration import runs
from tests.integration.runs import SEEDS, draw, expected, stopped_and_resumed
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed


@pytest.mark.sweep(share=0.25)
@pytest.mark.parametrize("seed", [seed for seed in SEEDS if draw(seed).strategy in runs.TOGETHER])
def test_a_random_run_on_two_ranks_ends_in_the_weights_of_the_loop_in_one_process(seed, tmp_path, pool):
    case = draw(seed)
    print(case)  # shown if it fails

    first, second = pool.run(stopped_and_resumed, case, tmp_path)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, expected(case), rtol=case.tolerance())
