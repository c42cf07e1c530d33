"""Writing to TensorBoard: many values as one event, where `add_scalar` makes an event of each."""

from collections.abc import Mapping

import torch
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

_BINS = 64


def scalars(values: Mapping[str, float]) -> Summary:
    """Return one summary that holds a scalar for each tag."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def histogram(tag: str, values: Tensor) -> Summary:
    """Return a histogram of the finite ones among `values`, in equal bins; without a value if none is finite.

    Binned where the values are; only the counts travel, so this waits for the device.
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


def write(writer: SummaryWriter, summary: Summary, step: int) -> None:
    """Write all values of `summary` as one event."""
    if summary.value:
        # There is no public way.
        writer._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]  # noqa: SLF001
