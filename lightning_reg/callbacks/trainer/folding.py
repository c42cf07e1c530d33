"""Fold rows of the plan that differ only in layer numbers into one row."""

import re
from collections.abc import Sequence
from itertools import pairwise

Row = tuple[str, str, str]
_FEWEST = 3
"""Folding two rows would not save reading time."""


def folded(rows: Sequence[Row]) -> list[Row]:
    """Return `rows`, with rows that differ only in numbers of the name as one: `encoder.{0..99}.weight x100`.

    The folded row takes the place of the first one. A layer with another action keeps its own row.
    """
    alike: dict[Row, list[Row]] = {}
    for row in rows:
        alike.setdefault((re.sub(r"\d+", "#", row[0]), *row[1:]), []).append(row)
    groups = {group[0]: group for group in alike.values() if len(group) >= _FEWEST}
    inside = {row for group in groups.values() for row in group}
    return [
        (_together([name for name, *_ in groups[row]]), *row[1:]) if row in groups else row
        for row in rows
        if row in groups or row not in inside
    ]


def _together(names: Sequence[str]) -> str:
    numbers = zip(*(re.findall(r"\d+", name) for name in names), strict=True)
    sets = iter([_as_set(sorted({int(number) for number in place})) for place in numbers])
    pattern = re.sub(r"\d+", lambda _: next(sets), names[0])
    return f"{pattern} x{len(names)}"


def _as_set(numbers: Sequence[int]) -> str:
    """Return numbers in the form `{0..3,7}`, and a single number without braces."""
    if len(numbers) == 1:
        return str(numbers[0])
    starts = [numbers[0], *(after for before, after in pairwise(numbers) if after != before + 1)]
    ends = [*(before for before, after in pairwise(numbers) if after != before + 1), numbers[-1]]
    parts = [str(start) if start == end else f"{start}..{end}" for start, end in zip(starts, ends, strict=True)]
    return f"{{{','.join(parts)}}}"
