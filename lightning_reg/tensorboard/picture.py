"""Layers against steps as one picture, for use without TensorBoard."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_COLUMN, _MOST = 12, 480
"""Pixels of one step if there are few steps, and the most pixels of all steps together."""
_ROW, _HEIGHT = 14, 1400
_LABELS, _HEAD, _GAP = 200, 34, 24
NOT_FINITE = (216, 27, 96)
LOW, MIDDLE, HIGH = (68, 1, 84), (33, 145, 140), (253, 231, 37)
"""Start, middle and end of the colour map viridis."""


def picture(metrics: Mapping[str, NDArray[np.float64]], layers: Sequence[str], steps: Sequence[int]) -> Image.Image:
    """Return one heatmap for each metric, side by side: rows are layers, columns are steps from left to right.

    Args:
        metrics: Maps the name of a metric to its numbers, shape (layers, steps); NaN is pink.
        layers: The names of the layers.
        steps: The steps, at least one.

    Returns:
        The picture. Text above each heatmap shows its metric, the range of its colours and the range of steps.

    """
    row = max(1, min(_ROW, _HEIGHT // len(layers)))
    width = min(_MOST, _COLUMN * len(steps))
    whole = (_LABELS + len(metrics) * (width + _GAP), _HEAD + row * len(layers) + _GAP)
    image = Image.new("RGB", whole, "white")
    draw = ImageDraw.Draw(image)
    every = -(-_ROW // row)
    for place in range(0, len(layers), every):
        name = layers[place]
        draw.text((4, _HEAD + place * row), name if len(name) <= 30 else f"...{name[-27:]}", fill="black")  # noqa: PLR2004  # what fits
    for place, (metric, values) in enumerate(metrics.items()):
        left = _LABELS + place * (width + _GAP)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        draw.text((left, 2), metric, fill="black")
        draw.text((left, 16), f"{low:.3g} to {high:.3g}, steps {steps[0]} to {steps[-1]}", fill="black")
        cells = Image.fromarray(_colours(values, low, high))
        image.paste(cells.resize((width, row * len(layers)), Image.Resampling.NEAREST), (left, _HEAD))
    return image


def _colours(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    place = (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
    anchors = np.array([LOW, MIDDLE, HIGH])
    channels = [np.interp(np.nan_to_num(place), [0, 0.5, 1], anchors[:, channel]) for channel in range(3)]
    colours = np.stack(channels, axis=-1).round().astype(np.uint8)
    colours[~np.isfinite(values)] = NOT_FINITE
    return colours
