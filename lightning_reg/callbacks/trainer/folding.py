"""Rows of the plan that say the same of layers with different numbers, as one row."""

import re
from collections.abc import Sequence
from itertools import pairwise

Row = tuple[str, str, str]
_FEWEST = 3
"""Two rows are read as quickly as what stands for them."""


def folded(rows: Sequence[Row]) -> list[Row]:
    """Return `rows`, where those that differ in numbers of the name alone are one: `encoder.{0..99}.weight x100`.

    It stands where the first of them stood. A layer to which something else happens keeps a row of its own.
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
    """Return `{0..3,7}`; a single number as it is."""
    if len(numbers) == 1:
        return str(numbers[0])
    starts = [numbers[0], *(after for before, after in pairwise(numbers) if after != before + 1)]
    ends = [*(before for before, after in pairwise(numbers) if after != before + 1), numbers[-1]]
    parts = [str(start) if start == end else f"{start}..{end}" for start, end in zip(starts, ends, strict=True)]
    return f"{{{','.join(parts)}}}"
