"""Layers against steps as one self-contained HTML file, for use without TensorBoard."""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from lightning_reg.tensorboard.picture import HIGH, LOW, MIDDLE, NOT_FINITE

_NUMBERS = 150_000
"""The most numbers in a file, with 5.3 bytes each: below 1 MB. There are always two steps."""


def heatmap(metrics: Mapping[str, NDArray[np.float64]], layers: Sequence[str], steps: Sequence[int]) -> str:
    """Return a page with a heatmap of each metric; many steps are thinned evenly, keeping the first and the last.

    Args:
        metrics: Maps the name of a metric to its numbers, shape (layers, steps).
        layers: The names of the layers.
        steps: The steps, at least one, in ascending order.

    Returns:
        HTML.

    """
    most = max(2, _NUMBERS // (len(metrics) * len(layers)))
    kept = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))
    data = {
        "metrics": {metric: _coded(values[:, kept]) for metric, values in metrics.items()},
        "layers": list(layers),
        "steps": [steps[place] for place in kept],
        "colours": [LOW, MIDDLE, HIGH],
        "strange": NOT_FINITE,
    }
    # Users choose the names: none may close the element that contains them.
    text = json.dumps(data).replace("<", "\\u003c")
    return (files("lightning_reg.tensorboard") / "heatmap.html").read_text("utf-8").replace("DATA", text, 1)


def _coded(values: NDArray[np.float64]) -> str:
    with np.errstate(over="ignore"):  # they become infinite
        return base64.b64encode(values.astype("<f4").tobytes()).decode()
