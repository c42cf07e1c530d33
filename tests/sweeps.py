"""Long sweeps: each run of the suite takes a newly drawn share of the cases; `make stress` takes all.

Long sweeps of random cases have a marker: `@pytest.mark.sweep(share=0.25)` beside the cases in `parametrize`. For the
twin of Lightning, whose code is the same, a share of all tests is enough, but for those with the marker `twin`.
"""

import math
import random
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest


def named(items: Sequence[pytest.Item], arguments: Sequence[str], folder: Path) -> set[pytest.Item]:
    """Return the tests that the command line names one by one, as `file::test` or `file::test[case]`.

    `folder` is the one that its paths start from.
    """
    ids = {
        f"{(folder / file).resolve()}::{name}" for file, mark, name in (a.partition("::") for a in arguments) if mark
    }
    found = set()
    for item in items:
        own = f"{item.path}::{item.nodeid.partition('::')[2]}"
        if own in ids or own.partition("[")[0] in ids:
            found.add(item)
    return found


def left_out(items: Sequence[pytest.Item], seed: int, named: Collection[pytest.Item] = frozenset()) -> set[pytest.Item]:
    """Return the cases of sweeps that a run with this seed does without; `named` ones, and one of each sweep, stay."""
    sweeps: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sweep") and item not in named:
            sweeps.setdefault(item.nodeid.partition("[")[0], []).append(item)
    out: set[pytest.Item] = set()
    for name, cases in sweeps.items():
        share = cases[0].get_closest_marker("sweep").kwargs["share"]
        rng = random.Random(f"{seed} {name}")
        out |= set(rng.sample(cases, len(cases) - math.ceil(share * len(cases))))
    return out


def left_out_for_the_twin(
    items: Sequence[pytest.Item], seed: int, share: float, named: Collection[pytest.Item] = frozenset()
) -> set[pytest.Item]:
    """Return the tests that a run for the twin does without, of those that do not need it and are not `named`."""
    rest = [item for item in items if not item.get_closest_marker("twin") and item not in named]
    return set(random.Random(f"{seed} twin").sample(rest, len(rest) - math.ceil(share * len(rest))))
