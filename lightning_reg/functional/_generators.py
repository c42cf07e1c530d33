"""The global random generators, left as they were."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def unchanged_generators(values: Sequence[Any]) -> Iterator[None]:
    """Restore the global random generators of the CPU and of the devices of `values`."""
    devices = {value.device for value in values if isinstance(value, Tensor) and value.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng([device for device in devices if device.type == kind], device_type=kind):
        yield


def generator_states(values: Sequence[Any]) -> list[Tensor]:
    """Return the states of those generators."""
    kinds = {value.device for value in values if isinstance(value, Tensor) and value.device.type != "cpu"}
    others = [torch.get_device_module(device.type).get_rng_state(device) for device in kinds]
    return [torch.get_rng_state(), *others]
