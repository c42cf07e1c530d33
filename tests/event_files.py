"""Reading back what was written for TensorBoard: every event, in the order of the files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


def values_in(folder: Path) -> Iterator[tuple[int, Any]]:
    """Yield the step and the summary value of everything in the event files below `folder`."""
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                yield event.step, value


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return every scalar: tag -> step -> value; a tag must not be written twice at one step."""
    found: dict[str, dict[int, float]] = {}
    for step, value in values_in(folder):
        if value.metadata.plugin_data.plugin_name == "scalars":
            steps = found.setdefault(value.tag, {})
            # Lightning itself writes the epoch again after a validation.
            assert step not in steps or value.tag == "epoch", f"{value.tag} written twice at step {step}"
            steps[step] = tensor_util.make_ndarray(value.tensor).item()
    return found


def histograms(folder: Path) -> dict[str, dict[int, Any]]:
    """Return every histogram: tag -> step -> rows of left edge, right edge, count."""
    found: dict[str, dict[int, Any]] = {}
    for step, value in values_in(folder):
        if value.metadata.plugin_data.plugin_name == "histograms":
            found.setdefault(value.tag, {})[step] = tensor_util.make_ndarray(value.tensor)
    return found


def texts(folder: Path) -> dict[str, str]:
    """Return every text: tag -> Markdown, the last one under a tag."""
    return {
        value.tag: tensor_util.make_ndarray(value.tensor)[0].decode()
        for _, value in values_in(folder)
        if value.metadata.plugin_data.plugin_name == "text"
    }


def layers(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Return the numbers of single layers that stand in tensors: metric -> layer -> step -> value."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    names: dict[str, list[str]] = {}
    for step, value in values_in(folder):
        tag = value.tag.rpartition("-")[2]
        if value.metadata.plugin_data.plugin_name != "lightning_reg_page" or "/" not in tag:
            continue
        if value.metadata.plugin_data.content:
            assert tag not in names, "the order of the layers once"
            names[tag] = json.loads(value.metadata.plugin_data.content)
        for layer, number in zip(names[tag], tensor_util.make_ndarray(value.tensor).tolist(), strict=True):
            steps = found.setdefault(tag.partition("/")[2], {}).setdefault(layer, {})
            assert step not in steps, f"{layer} written twice at step {step}"
            steps[step] = number
    return found
