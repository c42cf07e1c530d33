"""Processes as users start them: by torchrun, and by each of Lightning's own launchers."""

import subprocess
import sys

import pytest
import torch

from tests.distributed.launched import CASES
from tests.integration.runs import expected
from tests.reference import assert_same_weights

pytestmark = pytest.mark.distributed

SCRIPT = "tests.distributed.launched"
# One that looks for a free port by itself.
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.mark.parametrize("name", CASES)
def test_both_processes_end_in_the_weights_of_the_loop_in_one_process(name, tmp_path):
    modules = [*TORCHRUN, SCRIPT] if name == "torchrun" else [SCRIPT]

    run = subprocess.run(
        [sys.executable, "-m", *modules, name, str(tmp_path)], capture_output=True, text=True, timeout=900, check=False
    )

    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_same_weights(first, expected(CASES[name]), rtol=CASES[name].tolerance())
