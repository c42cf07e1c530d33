"""Logged numbers as the page shows them: layers by steps. This file works on numbers and names, without TensorBoard."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Number = float | str | None
"""A number in JSON."""
Key = list[tuple[str, float, int, str]]


def number(value: float) -> Number:
    """Return `value` for JSON; NaN and infinities, which JSON lacks, become their names in JavaScript."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def natural(name: str) -> Key:
    """Return a key that sorts names by their numbers, also decimals and exponents: "lr=1e-4", "lr=0.001"."""
    return _key(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+(?![\d.]))?", name)


def by_index(name: str) -> Key:
    """Return a key that sorts "layer.1.9" before "layer.1.10": the digits in names of layers are indices."""
    return _key(r"\d+", name)


def _key(number: str, name: str) -> Key:
    parts, start = [], 0
    for found in re.finditer(number, name):
        digits = found[0].lstrip("0")
        # Not with `int`, which refuses thousands of digits; names are arbitrary. Beyond the largest float, by length.
        parts.append((name[start : found.start()], float(found[0]), len(digits), digits))
        start = found.end()
    return [*parts, (name[start:], -1.0, 0, "")]


def in_order(layers: Iterable[str], network: Sequence[str]) -> list[str]:
    """Return `layers` in the order of `network`, followed by layers that are not in it, by name."""
    places = {layer: place for place, layer in enumerate(network)}
    return sorted(layers, key=lambda layer: (places.get(layer, len(places)), by_index(layer), layer))


@dataclass(frozen=True)
class Series:
    """The values of some layers at some steps."""

    layers: Sequence[str]
    steps: NDArray[np.int64]
    """The steps, in any order. If a step has several values, as after a resume, the last one counts."""
    values: NDArray[np.float64]
    """Shape (steps, layers)."""


def table(layers: Sequence[str], series: Sequence[Series], most: int) -> tuple[list[int], list[list[Number]], int]:
    """Return the values of `layers` in at most `most` columns.

    If there are more steps, a column stands for several consecutive steps: it is labelled with the last one, and holds
    the last value of each layer among them. So the last column is always the newest step.

    Returns:
        The step of each column; the values of each layer, `None` if nothing was logged; the number of steps.

    """
    steps = np.unique(np.concatenate([each.steps for each in series])) if series else np.zeros(0, np.int64)
    count = min(most, len(steps))
    if not count:
        return [], [[] for _ in layers], 0
    places = {layer: place for place, layer in enumerate(layers)}
    values = np.full((len(layers), len(steps)), np.nan)
    written = np.full((len(layers), len(steps)), -1)
    for each in series:
        rows = np.array([places[layer] for layer in each.layers])
        columns = np.searchsorted(steps, each.steps)
        values[rows[:, None], columns] = each.values.T
        written[rows[:, None], columns] = columns
    edges = np.arange(count + 1) * len(steps) // count
    last = np.maximum.accumulate(written, axis=1)[:, edges[1:] - 1]
    found = np.take_along_axis(values, np.maximum(last, 0), axis=1)
    return steps[edges[1:] - 1].tolist(), _as_json(found, last >= edges[:-1]), len(steps)


def _as_json(values: NDArray[np.float64], written: NDArray[np.bool_]) -> list[list[Number]]:
    rows: list[list[Number]] = values.tolist()
    for row, column in np.argwhere(~(np.isfinite(values) & written)).tolist():
        rows[row][column] = number(values[row, column]) if written[row, column] else None
    return rows
