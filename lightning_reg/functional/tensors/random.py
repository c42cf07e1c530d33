"""Seed and restore the global random generators, and derive seeds of independent random streams."""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def devices_of(values: Sequence[Any]) -> set[torch.device]:
    """Return the devices of the tensors among `values`."""
    return {value.device for value in values if isinstance(value, Tensor)}


@contextmanager
def unchanged_generators(devices: Collection[torch.device]) -> Iterator[None]:
    """Restore the global random generators of the CPU and of `devices`."""
    others = _others(devices)
    kind = next((device.type for device in others), "cuda")
    with torch.random.fork_rng([device for device in others if device.type == kind], device_type=kind):
        yield


@contextmanager
def watched_generators(devices: Collection[torch.device]) -> Iterator[Callable[[], bool]]:
    """Restore the generators like `unchanged_generators`, and yield a function that tells whether they were used."""
    with unchanged_generators(devices):
        before = _states(devices)
        yield lambda: not all(map(torch.equal, before, _states(devices)))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global random generators of the CPU and of `device`."""
    torch.default_generator.manual_seed(seed)
    for other in _others([device]):
        torch.get_device_module(other).manual_seed(seed)


def _others(devices: Collection[torch.device]) -> list[torch.device]:
    return [device for device in devices if device.type != "cpu"]


def _states(devices: Collection[torch.device]) -> list[Tensor]:
    others = [torch.get_device_module(device.type).get_rng_state(device) for device in _others(devices)]
    return [torch.get_rng_state(), *others]


def derived_seed(*parts: object) -> int:
    """Return a seed for torch, 63 bits, that depends on all `parts`; the same in every process."""
    return random.Random("/".join(map(str, parts))).getrandbits(63)
