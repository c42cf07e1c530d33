"""The data that runs have logged for the page: the series, and their numbers."""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_reg.tensorboard import tags
from lightning_reg.tensorboard.plugin.reader import Reader
from lightning_reg.tensorboard.plugin.series import Series, natural

SUMMARY = ("sparsity", "lipschitz_upper", "penalty_ratio", "dropout")
"""The numbers of a whole network that the page shows for each run, logged or not."""
_LOG10 = "lipschitz_log10"
_ORDERS = 1_000_000


@dataclass
class LoggedRun:
    """The data that a run has logged for this page, without the numbers of its layers."""

    name: str
    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Metric -> layer -> tag of its scalar."""
    tensors: dict[str, dict[str, Sequence[str]]] = field(default_factory=dict)
    """Metric -> tag of a tensor -> the layers whose numbers it holds."""
    orders: list[str] = field(default_factory=list)
    """Tags of the order of the layers."""
    summary: dict[str, float] = field(default_factory=dict)
    """The last value of each number of the whole network."""
    others: list[str] = field(default_factory=list)
    """Tags of scalars from outside this package."""
    newest: tuple[int, float, int] = (0, 0.0, -1)
    """Number of time series, wall time and step of the last point; it changes when something was added."""

    @property
    def metrics(self) -> list[str]:
        """The metrics with numbers of single layers."""
        return sorted(self.layers.keys() | self.tensors.keys())

    def add(self, tag: str, last: Any) -> None:
        """Add a scalar by its tag and its last point."""
        if found := tags.PER_LAYER.fullmatch(tag):
            layers = self.layers.setdefault(str(found["metric"]), {})
            layer = str(found["layer"])
            # Two loggers with different prefixes may write to one folder.
            layers[layer if layer not in layers else f"{found['prefix']}-{layer}"] = tag
        elif overall := tags.OVERALL.fullmatch(tag):
            if overall["name"] not in self.summary:
                self.summary[overall["name"]] = last.value
        else:
            self.others.append(tag)
            return
        self._count(last.wall_time, last.step)

    def add_tensor(self, tag: str, series: Any) -> None:
        """Add a tensor of this page; raises ValueError if it is not one."""
        if found := tags.VALUES.fullmatch(tag):
            names = json.loads(series.plugin_content)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                msg = "the names of its layers are not a list of strings"
                raise ValueError(msg)
            self.tensors.setdefault(found["metric"], {})[tag] = names
            self._count(series.max_wall_time, series.max_step)
        elif tag.endswith(tags.LAYERS):
            self.orders.append(tag)

    def layers_of(self, metric: str) -> set[str]:
        """Return the layers that have a number of `metric`."""
        return {
            *self.layers.get(metric, ()),
            *(name for names in self.tensors.get(metric, {}).values() for name in names),
        }

    def _count(self, wall_time: float, step: int) -> None:
        count, latest, last_step = self.newest
        self.newest = (count + 1, *max((latest, last_step), (wall_time, step)))


class Logs:
    """The runs of one experiment, through `reader`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def runs(self, names: Collection[str] | None = None) -> dict[str, LoggedRun]:
        """Return the runs that have logged something for this page, by name in natural order.

        Args:
            names: If given, only runs with these names.

        """
        # Listing the scalars would take longer: the provider searches every point for the largest step.
        last = self._reader.last_scalars(SCALARS, names)
        tensors = self._reader.listed_tensors(tags.PAGE, names)
        runs = {}
        for name in sorted(last.keys() | tensors.keys(), key=lambda name: (natural(name), name)):
            run = LoggedRun(name)
            # Shorter tags first: tags without a prefix precede tags with one.
            for tag in sorted(last.get(name, {}), key=lambda tag: (len(tag), tag)):
                run.add(tag, last[name][tag])
            for tag in sorted(tensors.get(name, {}), key=lambda tag: (len(tag), tag)):
                try:
                    run.add_tensor(tag, tensors[name][tag])
                except ValueError as error:
                    self._reader.complain(name, tag, error)
            log10 = run.summary.get(_LOG10)
            if log10 is not None:
                run.summary.setdefault("lipschitz_upper", _power_of_ten(log10))
            if run.newest[0] and (run.metrics or run.summary.keys() & {*SUMMARY, "weight_norm"}):
                runs[name] = run
        return runs

    def layers(self, runs: Iterable[LoggedRun], metric: str, layer: str | None, most: int) -> dict[str, list[Series]]:
        """Return the numbers of all layers, or of `layer`, for each run: at most `most` steps of each series."""
        runs = list(runs)
        wanted = {run.name: _only(run.layers.get(metric, {}), layer) for run in runs}
        names = [run.name for run in runs]
        found: dict[str, list[Series]] = {name: [] for name in names}
        scalars = {tag for layers in wanted.values() for tag in layers.values()}
        read = self._reader.scalars(SCALARS, names, scalars, most) if scalars else {}
        for name, layers in wanted.items():
            for each, tag in layers.items():
                points = read.get(name, {}).get(tag, ())
                if points:
                    values = np.array([[point.value] for point in points], dtype=np.float64)
                    found[name].append(Series([each], _steps(points), values))
        tensors = {tag for run in runs for tag, names in run.tensors.get(metric, {}).items() if layer in (None, *names)}
        read = self._reader.tensors(tags.PAGE, names, tensors, most)
        for run in runs:
            for tag, all_layers in run.tensors.get(metric, {}).items():
                points = self._of_length(run.name, tag, len(all_layers), read.get(run.name, {}).get(tag, ()))
                if points:
                    values = np.stack([np.asarray(point.numpy, dtype=np.float64) for point in points])
                    series = Series(all_layers, _steps(points), values)
                    found[run.name].append(series if layer is None else _row(series, layer))
        return found

    def _of_length(self, run: str, tag: str, length: int, points: Iterable[Any]) -> list[Any]:
        """Return the points with one number for each layer."""
        right = []
        for point in points:
            if point.numpy.shape == (length,) and point.numpy.dtype.kind == "f":
                right.append(point)
            else:
                self._reader.complain(run, tag, f"not {length} numbers at step {point.step}")
        return right

    def scalar(self, tag: str, most: int) -> dict[str, list[tuple[int, float]]]:
        """Return the points of one scalar in every run that has it."""
        read = self._reader.scalars(SCALARS, None, [tag], most)
        return {
            run: [(point.step, float(point.value)) for point in found[tag]]
            for run, found in read.items()
            if tag in found
        }

    def network(self, run: LoggedRun) -> list[str]:
        """Return the names of layers in the order of the network, if the run has logged them."""
        read = self._reader.tensors(tags.PAGE, [run.name], run.orders, _ORDERS)
        written = [point for series in read.get(run.name, {}).values() for point in series]
        # With several models in one run: the order of the last model, followed by the layers of the others.
        newest_first = sorted(written, key=lambda point: -point.wall_time)
        names = (name for point in newest_first for name in point.numpy.ravel().tolist())
        return list(dict.fromkeys(name.decode(errors="replace") for name in names if isinstance(name, bytes)))


def _only(layers: dict[str, str], layer: str | None) -> dict[str, str]:
    if layer is None:
        return layers
    return {layer: layers[layer]} if layer in layers else {}


def _row(series: Series, layer: str) -> Series:
    place = list(series.layers).index(layer)
    return Series([layer], series.steps, series.values[:, place : place + 1])


def _steps(points: Iterable[Any]) -> Any:
    return np.array([point.step for point in points], dtype=np.int64)


def _power_of_ten(exponent: float) -> float:
    try:
        return math.pow(10.0, exponent)
    except OverflowError:
        return math.inf
