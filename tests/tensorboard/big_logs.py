"""Logs as large as one likes, written in seconds: `python -m tests.tensorboard.big_logs FOLDER --runs 10`.

Event files hold a checksum of each event, which TensorBoard's own writers compute byte by byte in Python. Events of one
length are therefore made at once here: NumPy fills in the numbers, and computes the checksums of all of them.
"""

import argparse
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

TIME = 1_700_000_000.0


def _table() -> np.ndarray:
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(0x82F63B78), crc >> 1)
    return crc


_TABLE = _table()


def _masked_crc(rows: np.ndarray) -> np.ndarray:
    """Return the checksum (CRC-32C, masked as in TFRecord files) of each row of bytes."""
    crc = np.full(len(rows), 0xFFFFFFFF, dtype=np.uint32)
    for column in np.ascontiguousarray(rows.T):
        crc = _TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def _bytes(values: np.ndarray, kind: str) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=kind).view(np.uint8).reshape(len(values), -1)


def _records(events: np.ndarray) -> bytes:
    """Return rows of bytes, one event each, as they stand in an event file."""
    length = _bytes(np.full((len(events), 1), events.shape[1]), "<u8")
    parts = [length, _bytes(_masked_crc(length)[:, None], "<u4"), events, _bytes(_masked_crc(events)[:, None], "<u4")]
    return np.concatenate(parts, axis=1).tobytes()


def _events(steps: np.ndarray, values: np.ndarray, template: bytes, places: list[int]) -> np.ndarray:
    """Return events whose steps take the same number of bytes."""
    rows = []
    for step in steps.tolist():
        head = Event(step=step).SerializeToString()
        rows.append(b"\x09" + struct.pack("<d", TIME + step) + head + template)
    events = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(steps), -1).copy()
    offset = events.shape[1] - len(template)
    for row, place in zip(values, places, strict=True):
        events[:, offset + place : offset + place + 4] = _bytes(row[:, None], "<f4")
    return events


def write_scalars(file: Path, steps: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
    """Write scalars, one event for each step, to a new event file; `values` are the values of a tag at all steps."""
    file.parent.mkdir(parents=True, exist_ok=True)
    summary, places = b"", []
    for tag in values:
        # The number stands last in its message.
        summary += Summary(value=[Summary.Value(tag=tag, simple_value=1.0)]).SerializeToString()
        places.append(len(summary) - 4)
    head = b"\x2a" + _varint(len(summary))
    places = [len(head) + place for place in places]
    columns = np.stack(list(values.values()))
    lengths = np.array([len(Event(step=step).SerializeToString()) for step in steps.tolist()])
    with file.open("wb") as output:
        version = Event(wall_time=TIME, file_version="brain.Event:2").SerializeToString()
        output.write(_records(np.frombuffer(version, dtype=np.uint8)[None]))
        for length in sorted(set(lengths.tolist())):
            chosen = lengths == length
            output.write(_records(_events(steps[chosen], columns[:, chosen], head + summary, places)))


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def layers(count: int) -> list[str]:
    """Return names of layers as a transformer has them."""
    kinds = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down")
    return [f"encoder.blocks.{index // len(kinds)}.{kinds[index % len(kinds)]}" for index in range(count)]


def write_run(folder: Path, seed: int, names: list[str], steps: int, metrics: tuple[str, ...]) -> None:
    """Write a run with a number for each layer, metric and step."""
    random = np.random.default_rng(seed)
    time = np.arange(steps) / max(1, steps - 1)
    values = {"reg/sparsity": 0.5 * time, "reg/penalty_ratio": 0.1 + 0.0 * time}
    for metric in metrics:
        for depth, name in enumerate(names):
            growth = 1.0 + (0.2 + depth / len(names)) * time * (1 + seed / 10)
            values[f"reg.{metric}/{name}"] = growth + 0.01 * random.standard_normal(steps)
    write_scalars(folder / f"events.out.tfevents.{int(TIME)}.big.{seed}", np.arange(steps), values)


def write_logs(folder: Path, runs: int, count: int, steps: int, metrics: tuple[str, ...]) -> None:
    """Write `runs` runs of `count` layers and `steps` steps."""
    for run in range(runs):
        write_run(folder / f"run{run}", run, layers(count), steps, metrics)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--layers", type=int, default=250)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--metrics", nargs="+", default=["weight_norm"])
    given = parser.parse_args()
    write_logs(given.folder, given.runs, given.layers, given.steps, tuple(given.metrics))
