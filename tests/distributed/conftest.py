"""A pool of two gloo processes that all distributed tests share: starting one takes seconds."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.distributed.worker import WORLD_SIZE

_TIMEOUT_SECONDS = 300  # at most, because the machine may be busy
_GRACE_SECONDS = 5


class Pool:
    """Two ranks. `run` calls a module-level function on both and returns both results."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []

    def _start(self) -> None:
        self._folder = TemporaryDirectory()
        address, store = (str(Path(self._folder.name) / name) for name in ("socket", "store"))
        with Listener(address, "AF_UNIX") as listener:
            self._processes = [
                subprocess.Popen([sys.executable, "-m", "tests.distributed.worker", address, store, str(rank)])
                for rank in range(WORLD_SIZE)
            ]
            connections = [listener.accept() for _ in range(WORLD_SIZE)]
        self._connections = sorted(connections, key=lambda connection: connection.recv())

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if not self._connections:
            self._start()
        for connection in self._connections:
            connection.send((function.__module__, function.__name__, arguments))
        answers: dict[int, Any] = {}
        failure = ""
        while len(answers) < WORLD_SIZE:
            # When one rank has failed, the other may wait for it for ever.
            ready = wait(
                [connection for rank, connection in enumerate(self._connections) if rank not in answers],
                _GRACE_SECONDS if failure else _TIMEOUT_SECONDS,
            )
            if not ready:
                self._kill()
                pytest.fail(failure or f"no rank answered in {_TIMEOUT_SECONDS} s", pytrace=False)
            for connection in ready:
                rank = self._connections.index(connection)
                succeeded, answers[rank] = pickle.loads(connection.recv_bytes())
                if not succeeded:
                    failure = f"rank {rank}: {answers[rank]}"
        if failure:
            pytest.fail(failure, pytrace=False)
        return [answers[rank] for rank in range(WORLD_SIZE)]

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)
        if self._connections:
            for process in self._processes:
                process.wait(_TIMEOUT_SECONDS)
            self._folder.cleanup()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for connection in self._connections:
            connection.close()
        self._connections = []
        self._folder.cleanup()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()
