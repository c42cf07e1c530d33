"""Logged numbers as the page shows them: layers by steps. No TensorBoard here, only numbers and names."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

Number = float | str | None
"""As JSON holds it."""
Points = Mapping[int, float]
"""Step -> value."""


def number(value: float) -> Number:
    """Return `value` for JSON, which lacks NaN and infinities: these by their names in JavaScript."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def natural(name: str) -> list[tuple[str, int, str]]:
    """Return a key that sorts "layer2" before "layer10"."""
    # Not by `int`: names are arbitrary, and it refuses thousands of digits.
    parts = [(text, digits.lstrip("0")) for text, digits in re.findall(r"(\D*)(\d*)", name)]
    return [(text, len(digits), digits) for text, digits in parts]


def in_order(layers: Iterable[str], network: Sequence[str]) -> list[str]:
    """Return `layers` as they stand in `network`, and behind those the ones that do not, by name."""
    places = {layer: place for place, layer in enumerate(network)}
    return sorted(layers, key=lambda layer: (places.get(layer, len(places)), natural(layer), layer))


def table(layers: Sequence[Points], most: int) -> tuple[list[int], list[list[Number]], int]:
    """Return the values of `layers` in at most `most` columns.

    Where there are more steps than that, a column stands for several in a row: it bears the last one, and holds the
    last value of each layer among them. So the last column is always the newest step.

    Returns:
        The step of each column; the values of each layer, `None` where nothing was logged; how many steps there are.

    """
    steps = sorted(set().union(*layers))
    count = min(most, len(steps))
    edges = [position * len(steps) // count for position in range(count + 1)] if count else []
    columns = [steps[start:end][::-1] for start, end in pairwise(edges)]
    rows = [[_first(points, column) for column in columns] for points in layers]
    return [column[0] for column in columns], rows, len(steps)


def _first(points: Points, steps: Iterable[int]) -> Number:
    for step in steps:
        if step in points:
            return number(points[step])
    return None
