"""Measure the cost of variants of a training run inside a real Trainer.

All variants run in one `fit`, in turns and in a new order each round, so that drift of the machine affects all equally.
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.profiler import ProfilerActivity, profile, record_function
from typing_extensions import override

from benchmarks._clocks import synchronize

_AFTER_BACKWARD = "after backward"


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))

    @override
    def __str__(self) -> str:
        return f"{self.median:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass
class Measured:
    """The cost of the steps of one variant."""

    milliseconds: list[float] = field(default_factory=list)
    """One time for each round; different variants of the same round are measured close together."""
    peak_bytes: list[int] = field(default_factory=list)
    """Peak memory above the start of the step, up to the end of backward and after it."""

    def extra_milliseconds(self, base: "Measured") -> Spread:
        """Return how much longer a step takes than a step of `base`."""
        return Spread.of([own - other for own, other in zip(self.milliseconds, base.milliseconds, strict=True)])

    def extra_bytes(self, base: "Measured") -> int:
        """Return how much more memory a step needs than a step of `base`, in the half with the larger difference."""
        return max(own - other for own, other in zip(self.peak_bytes, base.peak_bytes, strict=True))


def measure(
    module: LightningModule,
    variants: Mapping[str, Sequence[Callback]],
    *,
    rounds: int,
    logger: Logger | bool = False,
) -> dict[str, Measured]:
    """Train `module` with the callbacks of each variant in turns, and return their costs.

    A step lasts from the end of the `on_train_batch_end` hooks of the last step to the end of its own. With a logger,
    every step is a logging step.
    """
    rotation = _Rotation(variants, rounds)
    trainer = Trainer(
        max_steps=len(rotation.turns),
        devices=1,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*(callback for callbacks in variants.values() for callback in callbacks), rotation],
    )
    trainer.fit(module, range(len(rotation.turns)))
    return rotation.measured


@dataclass(frozen=True)
class _Turn:
    """One step: its variant, and what is measured."""

    variant: str
    is_timed: bool = False
    is_traced: bool = False


class _Rotation(Callback):
    """Leaves, for each step, only the callbacks of one variant in the trainer."""

    def __init__(self, variants: Mapping[str, Sequence[Callback]], rounds: int) -> None:
        self.variants = variants
        self.measured = {name: Measured() for name in variants}
        rng = random.Random(0)
        names = list(variants)
        self.turns = 3 * [_Turn(name) for name in names]  # until the heap has its final size
        for _ in range(rounds):
            # At the first step, memory is in the state that another variant left.
            self.turns += [
                turn for name in rng.sample(names, len(names)) for turn in (_Turn(name), _Turn(name, is_timed=True))
            ]
        self.turns += [turn for name in names for turn in (_Turn(name), _Turn(name, is_traced=True))]
        self._all: list[Callback] = []
        self._memory = _CudaMemory() if torch.cuda.is_available() else _CpuMemory()
        self._turn = self.turns[0]
        self._start = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._all = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        self._begin(trainer, pl_module, self._turn)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._turn.is_traced:
            self._memory.mark()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        synchronize()
        milliseconds = 1e3 * (time.perf_counter() - self._start)
        measured = self.measured[self._turn.variant]
        if self._turn.is_timed:
            measured.milliseconds.append(milliseconds)
        if self._turn.is_traced:
            measured.peak_bytes = self._memory.stop()
        if batch_idx + 1 < len(self.turns):
            self._begin(trainer, pl_module, self.turns[batch_idx + 1])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callbacks = self._all  # type: ignore[attr-defined]

    def _begin(self, trainer: Trainer, pl_module: LightningModule, turn: _Turn) -> None:
        self._turn = turn
        # A new list, because the trainer is iterating over the old one.
        trainer.callbacks = [*self.variants[turn.variant], self]  # type: ignore[attr-defined]
        if turn.is_traced:
            pl_module.zero_grad()  # gradients of the last step would hide the memory of the forward pass
            self._memory.start()
        synchronize()
        self._start = time.perf_counter()


class _CudaMemory:
    """Peaks of the memory that torch has allocated on the GPU."""

    def start(self) -> None:
        self._peaks: list[int] = []
        self._before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def mark(self) -> None:
        self._peaks.append(torch.cuda.max_memory_allocated() - self._before)
        torch.cuda.reset_peak_memory_stats()

    def stop(self) -> list[int]:
        self.mark()
        return self._peaks


class _CpuMemory:
    """Peaks of the memory that torch has allocated, from the events of its profiler."""

    def start(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.start()

    def mark(self) -> None:
        with record_function(_AFTER_BACKWARD):
            pass

    def stop(self) -> list[int]:
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(file))
            events = json.loads(file.read_text())["traceEvents"]
        blocks: dict[int, int] = {}
        used = 0
        peaks = [0]
        for event in sorted(events, key=lambda event: float(event.get("ts", 0))):
            if event["name"] == _AFTER_BACKWARD:
                peaks.append(used)
            elif event["name"] == "[memory]":
                address, size = event["args"]["Addr"], event["args"]["Bytes"]
                if size > 0:
                    blocks[address] = size
                    used += size
                else:
                    used -= blocks.pop(address, 0)  # memory from before the step does not count
                peaks[-1] = max(peaks[-1], used)
        return peaks
