"""Long sweeps of random cases: every run of the suite takes a share of them, drawn anew; `make stress` takes all.

A test is such a sweep by its marker: `@pytest.mark.sweep(share=0.25)` beside the cases in `parametrize`.
"""

import math
import random
from collections.abc import Sequence

import pytest


def left_out(items: Sequence[pytest.Item], seed: int) -> set[pytest.Item]:
    """Return the cases of sweeps that a run with this seed does without; one of each sweep stays at least."""
    sweeps: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sweep"):
            sweeps.setdefault(item.nodeid.partition("[")[0], []).append(item)
    out: set[pytest.Item] = set()
    for name, cases in sweeps.items():
        share = cases[0].get_closest_marker("sweep").kwargs["share"]
        rng = random.Random(f"{seed} {name}")
        out |= set(rng.sample(cases, len(cases) - math.ceil(share * len(cases))))
    return out
