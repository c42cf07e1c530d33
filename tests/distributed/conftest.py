"""A pool of two gloo processes that all distributed tests share: starting one takes seconds."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.worker import WORLD_SIZE

_TIMEOUT_SECONDS = 180


class Pool:
    """Two ranks. `run` calls a module-level function on both and returns both results."""

    def __init__(self, folder: Path) -> None:
        address = str(folder / "socket")
        with Listener(address, "AF_UNIX") as listener:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.distributed.worker", address, str(folder / "store"), str(rank)]
                )
                for rank in range(WORLD_SIZE)
            ]
            connections = [listener.accept() for _ in range(WORLD_SIZE)]
        self._connections: list[Connection] = sorted(connections, key=lambda connection: connection.recv())

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for connection in self._connections:
            connection.send((function.__module__, function.__name__, arguments))
        results = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(_TIMEOUT_SECONDS):
                self.kill()
                pytest.exit(f"rank {rank} of {function.__name__} did not answer in {_TIMEOUT_SECONDS} s", 1)
            succeeded, result = pickle.loads(connection.recv_bytes())
            if not succeeded:
                pytest.fail(f"rank {rank}: {result}", pytrace=False)
            results.append(result)
        return results

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.wait(_TIMEOUT_SECONDS)

    def kill(self) -> None:
        for process in self._processes:
            process.kill()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()
