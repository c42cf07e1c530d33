"""Measure times: of actions in turns, and of the hooks of a callback."""

import random
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import Callback

Clock = Callable[[], float]

_HOOKS = ("on_fit_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end")


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the time of each action in each round."""
    rng, names = random.Random(0), list(actions)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 2):
        for name in rng.sample(names, len(names)):
            synchronize()
            start = clock()
            actions[name]()
            synchronize()
            if number >= 2:  # until memory and caches are warm
                times[name].append(1e3 * (clock() - start))
    return times


def timed(callback: Callback, clock: Clock) -> list[float]:
    """Return a list to which the hooks of `callback` append their times in seconds."""
    seconds: list[float] = []

    def watch(hook: Callable[..., None]) -> Callable[..., None]:
        @wraps(hook)
        def run(*args: Any, **kwargs: Any) -> None:
            start = clock()
            hook(*args, **kwargs)
            seconds.append(clock() - start)

        return run

    for name in _HOOKS:
        setattr(callback, name, watch(getattr(callback, name)))
    return seconds
