"""Runs drawn at random, of callbacks, precisions and interruptions: each ends in the weights of the loop by hand.

They are a hundred with those on two ranks, in `tests/distributed/test_random_runs.py`, of which the suite draws a
quarter each time. A run that fails shows its settings; the seed is in the name of the test:
`pytest 'tests/integration/test_random_runs.py::test_a_random_run_ends_in_the_weights_of_the_loop[17]'`
"""

import signal

import pytest

from tests.integration import runs
from tests.integration.crash import exit_code_of
from tests.integration.effects import KINDS
from tests.integration.runs import SEEDS, draw, expected, interrupt, stopped_and_resumed, train
from tests.reference import assert_same_weights


@pytest.mark.sweep(share=0.25)
@pytest.mark.parametrize("seed", [seed for seed in SEEDS if draw(seed).strategy in runs.ALONE])
@pytest.mark.filterwarnings("ignore:.*both shrink the same weights")
def test_a_random_run_ends_in_the_weights_of_the_loop(seed, tmp_path):
    case = draw(seed)
    print(case)  # shown if it fails
    if case.interruption.startswith("SIGKILL"):
        assert exit_code_of(interrupt, case, tmp_path) == -signal.SIGKILL
        actual = train(case, tmp_path, resume=True)
    else:
        actual = stopped_and_resumed(case, tmp_path)

    assert_same_weights(actual, expected(case), rtol=case.tolerance())


def test_the_hundred_have_every_setting_several_times():
    cases = [draw(seed) for seed in SEEDS]

    def times(found, choices):
        found = list(found)
        assert set(found) == set(choices)
        return min(found.count(choice) for choice in choices)

    assert len(cases) == 100
    assert times((name for case in cases for name, _ in case.regularized), KINDS) >= 3
    assert times((name for case in cases for name in case.watchers), runs.WATCHERS) >= 3
    for field, choices in {
        "drops": (False, True),
        "strategy": (*runs.ALONE, *runs.TOGETHER),
        "interruption": runs.INTERRUPTIONS,
        "precision": runs.PRECISIONS,
        "optimizer": runs.OPTIMIZERS,
        "accumulate": (1, 2, 3),
        "clipping": runs.CLIPPING,
    }.items():
        assert times((getattr(case, field) for case in cases), choices) >= 3, field
