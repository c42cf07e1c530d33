"""The page "HPARAMS"."""

from collections.abc import Mapping

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG
from torch.utils.tensorboard.summary import hparams


def hyperparameters(values: Mapping[str, bool | float | str]) -> Summary:
    """Return the summary that gives a run its hyperparameters. The first one in a run counts.

    It names no metrics: TensorBoard then offers every scalar of the runs, and all hyperparameters that any run has.
    """
    _, session_start, _ = hparams(dict(values), {})  # type: ignore[no-untyped-call]  # torch's
    return session_start


def no_experiment() -> Summary:
    """Return a summary that keeps TensorBoard from reading a later one of what the experiment consists of.

    Lightning writes such a list for each run, with the module's hyperparameters and the one metric `hp_metric`.
    TensorBoard takes that of any one run for all, and shows nothing else. The first summary under a tag says which
    plugin the tag belongs to: under another one than "hparams", it is not found.
    """
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="lightning_reg"))
    return Summary(value=[Summary.Value(tag=EXPERIMENT_TAG, metadata=metadata)])
