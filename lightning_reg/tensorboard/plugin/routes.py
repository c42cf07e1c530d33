"""The routes of the page: its files, and the numbers as JSON."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Any

from tensorboard import context as request_context
from tensorboard import errors
from tensorboard.backend import experiment_id, http_util
from tensorboard.plugins import base_plugin
from typing_extensions import override
from werkzeug import Request, Response

from lightning_reg.tensorboard import tags
from lightning_reg.tensorboard.plugin.logs import SUMMARY, LoggedRun, Logs
from lightning_reg.tensorboard.plugin.reader import Reader
from lightning_reg.tensorboard.plugin.series import in_order, number, table
from lightning_reg.tensorboard.plugin.settings import settings

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_COLUMNS = 400
_POINTS = 1000
_MOST = 2000
"""The largest number of columns or points in a request."""
_SHOWN = 100
_logger = logging.getLogger(__name__)
_Json = Mapping[str, object]


class RegularizationPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """Layers against time, for runs with numbers of single layers: in our tensors, or as `reg.<metric>/<layer>`."""

    plugin_name = tags.PAGE

    def __init__(self, context: base_plugin.TBContext) -> None:
        if context.data_provider is None:
            msg = "TensorBoard has no data provider, as with `--generic_data=false`"
            raise ValueError(msg)
        self._provider = context.data_provider
        self._files = _files_in(files("lightning_reg.tensorboard.plugin") / "static")
        self._found = False

    @override
    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Return the route of each answer."""
        return {
            "/runs": _route(self._runs),
            "/heatmap": _route(self._heatmap),
            "/curve": _route(self._curve),
            "/scalar": _route(self._scalar),
            "/static/*": _route(self._file),
        }

    @override
    def is_active(self) -> bool:
        """Return whether there is something to show; called only if no run has logged the order of its layers."""
        if not self._found:
            self._found = bool(Logs(Reader(self._provider, request_context.RequestContext(), "")).runs())
        return self._found

    @override
    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the entry file of the page."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Regularization")

    def _reader(self, request: Request) -> Reader:
        # As in `tensorboard.plugin_util`, which imports many modules that the page does not need.
        environment = request.environ
        experiment = environment.get(experiment_id.WSGI_ENVIRON_KEY, "")
        return Reader(self._provider, request_context.from_environ(environment), experiment)

    def _runs(self, request: Request) -> _Json:
        reader = self._reader(request)
        runs = Logs(reader).runs()
        if not runs:
            return {"runs": []}
        started, hyperparameters = reader.started(), settings(reader)
        # A run that has just appeared gets the next colour.
        places = {name: place for place, name in enumerate(dict.fromkeys([*started, *runs]))}
        return {
            "runs": [
                {
                    **_described(run),
                    "started": places[name],
                    "settings": hyperparameters.get(name, {}),
                    "problems": reader.problems.get(name, []),
                }
                for name, run in runs.items()
            ]
        }

    def _heatmap(self, request: Request) -> _Json:
        name, metric = _text(request, "run"), _text(request, "metric")
        most = _count(request, "columns", _COLUMNS)
        reader = self._reader(request)
        logs = Logs(reader)
        run = logs.runs([name]).get(name)
        if run is None:
            raise errors.NotFoundError(f"no run {_short(name)} that holds something for this page")
        layers = run.layers_of(metric)
        if not layers:
            raise errors.NotFoundError(f"no metric {_short(metric)} in run {_short(name)}")
        network = logs.network(run)
        order = in_order(layers, network)
        series = logs.layers([run], metric, None, max(_POINTS, 2 * most))[name]
        steps, values, total = table(order, series, most)
        answer = {
            "run": name,
            "metric": metric,
            "layers": order,
            "order": "name" if layers.isdisjoint(network) else "network",
            "steps": steps,
            "values": values,
            "total_steps": total,
        }
        return answer | ({"problems": reader.problems[name]} if name in reader.problems else {})

    def _curve(self, request: Request) -> _Json:
        metric, layer = _text(request, "metric"), _text(request, "layer")
        most = _count(request, "points", _POINTS)
        logs = Logs(self._reader(request))
        with_metric = [run for run in logs.runs().values() if metric in run.metrics]
        if not with_metric:
            raise errors.NotFoundError(f"no metric {_short(metric)} in any run")
        found = [run for run in with_metric if layer in run.layers_of(metric)]
        if not found:
            raise errors.NotFoundError(f"no layer {_short(layer)} with metric {_short(metric)} in any run")
        curves = []
        for name, series in logs.layers(found, metric, layer, max(_POINTS, 2 * most)).items():
            steps, (values,), _ = table([layer], series, most)
            curves.append({"run": name, "steps": steps, "values": values})
        return {"metric": metric, "layer": layer, "curves": curves}

    def _scalar(self, request: Request) -> _Json:
        """Answer with the last, the least and the largest value of a scalar in each run."""
        tag = _text(request, "tag")
        found = Logs(self._reader(request)).scalar(tag, _POINTS)
        if not found:
            raise errors.NotFoundError(f"no scalar {_short(tag)} in any run")
        return {"tag": tag, "runs": {run: _extremes(points) for run, points in found.items() if points}}

    def _file(self, request: Request) -> Response:
        name = request.path.partition("/static/")[2]
        # The name is looked up, never joined to a path.
        if name not in self._files:
            raise errors.NotFoundError(f"no file {_short(name)}")
        return _response(request, self._files[name].read_bytes(), _TYPES[PurePosixPath(name).suffix])


def _files_in(folder: Traversable, prefix: str = "") -> dict[str, Traversable]:
    """Return the files of the page in `folder` and below, by relative path, without hidden files."""
    found: dict[str, Traversable] = {}
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        path = prefix + entry.name
        if entry.is_dir():
            found |= _files_in(entry, f"{path}/")
        elif PurePosixPath(path).suffix in _TYPES:
            found[path] = entry
    return found


def _described(run: LoggedRun) -> _Json:
    values = {key: run.summary.get(key) for key in SUMMARY}
    return {
        "name": run.name,
        "metrics": run.metrics,
        "summary": {key: None if value is None else number(value) for key, value in values.items()},
        "numbers": {key: number(value) for key, value in run.summary.items()},
        "scalars": run.others,
        "version": "-".join(map(str, run.newest)),
    }


def _extremes(points: list[tuple[int, float]]) -> _Json:
    """Return `[step, value]` of the last, the least and the largest number; NaN is never the least or largest."""
    known = [point for point in points if point[1] == point[1]] or points
    chosen = {
        "last": points[-1],
        "least": min(known, key=lambda point: point[1]),
        "largest": max(known, key=lambda point: point[1]),
    }
    return {name: [step, number(value)] for name, (step, value) in chosen.items()}


def _route(answer: Callable[[Request], _Json | Response]) -> Callable[..., Any]:
    """Return a WSGI application that responds with `answer`, or with an error, as JSON."""

    @Request.application
    def application(request: Request) -> Response:
        headers: list[tuple[str, str]] = []
        body: _Json
        if request.method not in ("GET", "HEAD"):
            headers, code, body = [("Allow", "GET, HEAD")], 405, {"error": f"{request.method} is not allowed, only GET"}
        else:
            try:
                answered = answer(request)
                if isinstance(answered, Response):
                    return answered
                code, body = 200, answered
            except errors.PublicError as error:
                headers, code, body = error.headers, error.http_code, {"error": str(error)}
            except Exception as error:  # a log directory can hold anything: the page shows the error and continues
                _logger.exception("The page cannot be answered")
                code, body = 503, {"error": _short(f"{type(error).__name__}: {error}")}
        # As text, because TensorBoard would check every number again, which takes longer than everything else.
        return _response(request, json.dumps(body, allow_nan=False), "application/json", code=code, headers=headers)

    return application


def _response(request: Request, content: str | bytes, kind: str, **settings: Any) -> Response:
    response: Response = http_util.Respond(request, content, kind, **settings)
    return response


def _text(request: Request, name: str) -> str:
    value = request.args.get(name)
    if not value:
        raise errors.InvalidArgumentError(f"`{name}` must be given")
    return str(value)


def _count(request: Request, name: str, default: int) -> int:
    value = request.args.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,4}", value) or not 1 <= int(value) <= _MOST:
        raise errors.InvalidArgumentError(f"`{name}` must be an integer from 1 to {_MOST}, got {_short(value)}")
    return int(value)


def _short(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
