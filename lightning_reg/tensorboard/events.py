"""Write to TensorBoard: many values as one event, where `add_scalar` would write one event for each."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, HistogramProto, Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_reg.tensorboard import tags

_BINS = 64


def scalars(values: Mapping[str, float]) -> Summary:
    """Return one summary with a scalar for each tag."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def histogram(tag: str, values: Tensor) -> Summary:
    """Return a histogram of the finite `values` in equal bins; it is empty if no value is finite.

    The bins are counted on the device of the values, and only the counts are copied. This waits for the device.
    """
    values = values.detach().flatten()
    values = values.abs() if values.is_complex() else values
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    values = values[values.isfinite()]
    if not values.numel():
        return Summary()
    low, high = (bound.item() for bound in values.aminmax())
    bins = _BINS if low < high else 1
    proto = HistogramProto(
        min=low,
        max=high,
        num=values.numel(),
        sum=values.sum().item(),
        sum_squares=values.square().sum().item(),
        bucket_limit=torch.linspace(low, high, bins + 1, dtype=torch.float64)[1:].tolist(),
        bucket=torch.histc(values, bins, low, high).tolist(),
    )
    return Summary(value=[Summary.Value(tag=tag, histo=proto)])


def network_order(tag: str, names: Sequence[str]) -> Summary:
    """Return the names of layers in the order of the network, for the page "Regularization"."""
    plugin = SummaryMetadata.PluginData(plugin_name=tags.PAGE)
    metadata = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    value = make_tensor_proto([name.encode() for name in names])
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=value)])


def layer_values(tag: str, values: Sequence[float], names: Sequence[str] | None) -> Summary:
    """Return a number for each layer as one tensor; pass the `names` of the layers the first time only."""
    plugin = SummaryMetadata.PluginData(plugin_name=tags.PAGE)
    if names is not None:
        plugin.content = json.dumps(list(names)).encode()
    metadata = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    return Summary(
        value=[Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(np.array(values, dtype=np.float32)))]
    )


def write(writer: SummaryWriter, summary: Summary, step: int) -> None:
    """Write all values of `summary` as one event."""
    if summary.value:
        # torch has no public function for this.
        writer._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]  # noqa: SLF001
