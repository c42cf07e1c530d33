"""Read TensorBoard's data provider so that one malformed series does not affect the others."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tensorboard import errors
from tensorboard.data.provider import RunTagFilter

_TRIES = 5
_WAIT_SECONDS = 0.1
_TOLD = 200
"""The most characters of a reason."""
Found = dict[str, dict[str, Any]]
"""Run -> tag -> the data read."""


class StillLoadingError(errors.PublicError):  # type: ignore[misc]  # TensorBoard has no types
    """TensorBoard cannot read at this moment."""

    http_code = 503


class Reader:
    """Reads one experiment.

    Args:
        provider: TensorBoard's `DataProvider`.
        context: The context of the request.
        experiment: The id of the experiment; empty for a log directory.

    """

    def __init__(self, provider: Any, context: Any, experiment: str) -> None:
        self._provider = provider
        self._context = context
        self._experiment = experiment
        self.problems: dict[str, list[str]] = {}
        """Run -> the series that could not be read, with reasons."""

    def complain(self, run: str, tag: str, reason: object) -> None:
        """Record that a series of a run cannot be shown."""
        text = f"{_short(tag)}: {_short(str(reason))}"
        told = self.problems.setdefault(run, [])
        if text not in told:
            told.append(text)

    def last_scalars(self, plugin: str, runs: Collection[str] | None = None) -> Found:
        """Return the last point of each scalar."""
        return self._whole(self._provider.read_last_scalars, "list_scalars", plugin, runs, None)

    def scalars(self, plugin: str, runs: Collection[str] | None, tags: Collection[str], most: int) -> Found:
        """Return points of scalars, at most `most` of each."""
        return self._whole(self._provider.read_scalars, "list_scalars", plugin, runs, tags, downsample=most)

    def tensors(self, plugin: str, runs: Collection[str], tags: Collection[str], most: int) -> Found:
        """Return points of tensors, at most `most` of each."""
        if not tags:
            return {}
        return self._whole(self._provider.read_tensors, "list_tensors", plugin, runs, tags, downsample=most)

    def listed_tensors(self, plugin: str, runs: Collection[str] | None = None) -> Found:
        """Return the series of tensors with the metadata of their first point; nothing if they cannot be listed."""
        try:
            found: Found = self._ask(
                self._provider.list_tensors, plugin_name=plugin, run_tag_filter=RunTagFilter(runs=runs)
            )
        except errors.PublicError:
            raise
        except Exception:  # a storage with scalars only
            return {}
        return found

    def started(self) -> list[str]:
        """Return the names of all runs in the order in which TensorBoard gives them colours."""
        try:
            runs = self._ask(self._provider.list_runs)
        except errors.PublicError:
            raise
        except Exception:  # then runs get colours in the order in which they are found
            return []
        by_start = sorted((math.inf if run.start_time is None else run.start_time, run.run_name) for run in runs)
        return [name for _, name in by_start]

    def _whole(
        self,
        read: Callable[..., Found],
        listing: str,
        plugin: str,
        runs: Collection[str] | None,
        tags: Collection[str] | None,
        **settings: object,
    ) -> Found:
        """Read everything at once; if that fails, read as much as possible."""

        def part(runs: Collection[str] | None, tags: Collection[str] | None) -> Found:
            wanted = RunTagFilter(runs=runs, tags=tags)
            found: Found = self._ask(read, plugin_name=plugin, run_tag_filter=wanted, **settings)
            return found

        try:
            return part(runs, tags)
        except errors.PublicError:
            raise
        except Exception:
            listed: Mapping[str, Mapping[str, Any]] = self._ask(
                getattr(self._provider, listing), plugin_name=plugin, run_tag_filter=RunTagFilter(runs=runs, tags=tags)
            )
        found: Found = {}
        for run, series in listed.items():
            for tag, read_one in self._halved(part, run, sorted(series)).items():
                found.setdefault(run, {})[tag] = read_one
        return found

    def _halved(self, part: Callable[..., Found], run: str, tags: list[str]) -> dict[str, Any]:
        """Read the series of one run; on failure split them in halves until the failing series is isolated."""
        try:
            found: dict[str, Any] = part([run], tags).get(run, {})
        except errors.PublicError:
            raise
        except Exception as error:
            if len(tags) == 1:
                self.complain(run, tags[0], error)
                return {}
        else:
            return found
        middle = len(tags) // 2
        return self._halved(part, run, tags[:middle]) | self._halved(part, run, tags[middle:])

    def _ask(self, read: Callable[..., Any], **arguments: object) -> Any:
        for _ in range(_TRIES):
            try:
                return read(self._context, experiment_id=self._experiment, **arguments)
            except errors.PublicError:
                raise
            except (KeyError, RuntimeError):
                # The Python loader lists a series before its first point, and its dictionaries change while it loads.
                time.sleep(_WAIT_SECONDS)
        msg = "TensorBoard is still loading, try again"
        raise StillLoadingError(msg)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TOLD else f"{line[:_TOLD]}..."
