"""Every constraint trains to the weights of the loop that is written by hand, in every way of training."""

import pytest

from tests.integration.runs import Case, expected, stopped_and_resumed
from tests.reference import assert_same_weights

KINDS = ("max norm", "unit norm", "min max norm", "non-negative", "n of m", "keep zeros")
WAYS = {
    "accumulation and clipping": {"accumulate": 3, "clipping": "norm", "precision": "64-true"},
    "fp16": {"precision": "16-mixed", "accumulate": 2},
    "fp16 and a fused optimizer": {"precision": "16-mixed", "optimizer": "fused adam"},
    "resume": {"interruption": "exception", "at_batch": 9, "optimizer": "adamw", "validates": True},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_it_equals_the_loop(name, way, tmp_path):
    case = Case(((name, "encoder"), (name, "hidden")), **WAYS[way])

    actual = stopped_and_resumed(case, tmp_path)

    assert_same_weights(actual, expected(case), rtol=case.tolerance())
