"""The page "HPARAMS"."""

from collections.abc import Mapping

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG
from torch.utils.tensorboard.summary import hparams


def hyperparameters(values: Mapping[str, bool | float | str]) -> Summary:
    """Return the summary with the hyperparameters of a run. The first one in a run counts.

    It names no metrics: TensorBoard then offers every scalar and all hyperparameters of any run.
    """
    _, session_start, _ = hparams(dict(values), {})  # type: ignore[no-untyped-call]  # torch's
    return session_start


def no_experiment() -> Summary:
    """Return a summary that keeps TensorBoard from reading a later description of the experiment.

    Lightning writes such a description for each run, with the module's hyperparameters and the single metric
    `hp_metric`. TensorBoard uses the description of any one run for all runs, and shows nothing else. The first summary
    under a tag assigns the tag to a plugin: assigned to another plugin than "hparams", the description is not found.
    """
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="lightning_reg"))
    return Summary(value=[Summary.Value(tag=EXPERIMENT_TAG, metadata=metadata)])
