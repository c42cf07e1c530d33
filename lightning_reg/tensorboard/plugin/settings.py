"""The hyperparameters of runs, as on TensorBoard's page "HPARAMS"."""

from tensorboard.plugins.hparams import metadata

from lightning_reg.tensorboard.plugin.reader import Reader
from lightning_reg.tensorboard.plugin.series import Number, number

Settings = dict[str, Number | bool]


def settings(reader: Reader) -> dict[str, Settings]:
    """Return run -> name -> value, for runs with hyperparameters."""
    found = {}
    for run, series in reader.listed_tensors(metadata.PLUGIN_NAME).items():
        if metadata.SESSION_START_INFO_TAG not in series:
            continue
        try:
            info = metadata.parse_session_start_info_plugin_data(series[metadata.SESSION_START_INFO_TAG].plugin_content)
        except Exception as error:  # another program may have written anything there
            reader.complain(run, metadata.SESSION_START_INFO_TAG, error)
            continue
        found[run] = {name: _plain(value) for name, value in sorted(info.hparams.items())}
    return found


def _plain(value: object) -> Number | bool:
    kind = value.WhichOneof("kind")  # type: ignore[attr-defined]  # a message of protobuf
    if kind == "number_value":
        return number(value.number_value)  # type: ignore[attr-defined]
    return getattr(value, kind) if kind in ("bool_value", "string_value") else None
