"""What runs have logged, as TensorBoard's data provider gives it: any loader, any storage."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorboard import errors
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_reg.tensorboard import tags
from lightning_reg.tensorboard.plugin.series import Points, natural

SUMMARY = ("sparsity", "lipschitz_upper", "penalty_ratio", "dropout")
"""The numbers of a whole network that the page shows for each run."""
_LOG10 = "lipschitz_log10"
_MANY = 1_000_000
_TRIES = 5
_WAIT_SECONDS = 0.1


class StillLoadingError(errors.PublicError):  # type: ignore[misc]  # TensorBoard has no types
    """TensorBoard cannot read at this moment."""

    http_code = 503


@dataclass
class LoggedRun:
    """What a run has logged for this page, without the numbers of its layers."""

    name: str
    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Metric -> layer -> tag."""
    summary: dict[str, float] = field(default_factory=dict)
    """The last value of each of `SUMMARY` that there is."""
    newest: tuple[int, float, int] = (0, 0.0, -1)
    """How many time series there are; wall time and step of the last point: another one when something was added."""

    def add(self, tag: str, last: Any) -> None:
        """Take in a time series, by its tag and its last point."""
        if found := tags.PER_LAYER.fullmatch(tag):
            layers = self.layers.setdefault(found["metric"], {})
            # Two loggers with different prefixes may write to one folder.
            layer = found["layer"] if found["layer"] not in layers else f"{found['prefix']}-{found['layer']}"
            layers[layer] = tag
        elif (found := tags.OVERALL.fullmatch(tag)) and found["name"] in (*SUMMARY, _LOG10):
            self.summary.setdefault(found["name"], last.value)
        else:
            return
        count, time, step = self.newest
        self.newest = (count + 1, *max((time, step), (last.wall_time, last.step)))


class Logs:
    """The runs of one experiment.

    Args:
        provider: TensorBoard's `DataProvider`.
        context: Of the request.
        experiment: Its id; empty for a log directory.

    """

    def __init__(self, provider: Any, context: Any, experiment: str) -> None:
        self._provider = provider
        self._context = context
        self._experiment = experiment

    def runs(self, names: Collection[str] | None = None) -> dict[str, LoggedRun]:
        """Return the runs that have logged something for this page, by name in natural order.

        Args:
            names: If given, only those of these names.

        """
        # Listing the tags takes the provider longer: it looks at every point for the largest step.
        last = self._ask(self._provider.read_last_scalars, plugin_name=SCALARS, run_tag_filter=RunTagFilter(runs=names))
        runs = {}
        for name in sorted(last, key=lambda name: (natural(name), name)):
            run = LoggedRun(name)
            # Shorter ones first: tags without a prefix, then those with one.
            for tag in sorted(last[name], key=lambda tag: (len(tag), tag)):
                run.add(tag, last[name][tag])
            if run.newest[0]:
                log10 = run.summary.pop(_LOG10, None)
                if log10 is not None:
                    run.summary.setdefault("lipschitz_upper", _power_of_ten(log10))
                runs[name] = run
        return runs

    def points(self, runs: Iterable[str], tags: Iterable[str], most: int) -> Mapping[str, Mapping[str, Points]]:
        """Return the scalars under `tags` in `runs`: run -> tag -> points, at most `most` of each."""
        read = self._ask(
            self._provider.read_scalars,
            plugin_name=SCALARS,
            downsample=most,
            run_tag_filter=RunTagFilter(runs=list(runs), tags=list(tags)),
        )
        # Of several values at one step, as after a resume, the last one counts.
        return {
            run: {tag: {point.step: point.value for point in series} for tag, series in found.items()}
            for run, found in read.items()
        }

    def network(self, run: str) -> list[str]:
        """Return the names of layers in the order of the network, if the run has logged them."""
        read = self._ask(
            self._provider.read_tensors,
            plugin_name=tags.PAGE,
            downsample=_MANY,
            run_tag_filter=RunTagFilter(runs=[run]),
        )
        written = [point for series in read.get(run, {}).values() for point in series]
        # Of several models in one run, the order of the last one, and behind it what only the others have.
        newest_first = sorted(written, key=lambda point: -point.wall_time)
        names = (name for point in newest_first for name in point.numpy.ravel().tolist())
        return list(dict.fromkeys(name.decode(errors="replace") for name in names if isinstance(name, bytes)))

    def _ask(self, read: Callable[..., Any], **arguments: object) -> Any:
        for _ in range(_TRIES):
            try:
                return read(self._context, experiment_id=self._experiment, **arguments)
            except errors.PublicError:
                raise
            except (KeyError, RuntimeError):
                # The Python loader lists a series before it has a point, and its dictionaries grow while they are read.
                time.sleep(_WAIT_SECONDS)
        msg = "TensorBoard is still loading, try again"
        raise StillLoadingError(msg)


def _power_of_ten(exponent: float) -> float:
    try:
        return math.pow(10.0, exponent)
    except OverflowError:
        return math.inf
