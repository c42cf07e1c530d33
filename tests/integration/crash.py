"""A process of its own for a function that does not survive."""

import multiprocessing
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from typing import Any

_TIMEOUT_SECONDS = 300  # at most, because the machine may be busy


@cache
def _context() -> ForkServerContext:
    # Forks of a process that has imported everything but has not trained: starting one takes no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.runs"])
    return context


def exit_code_of(function: Callable[..., Any], *arguments: Any) -> int | None:
    """Call a module-level function in another process; return how that ended: negative for a signal."""
    process = _context().Process(target=_alone, args=(function, arguments))
    process.start()
    process.join(_TIMEOUT_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError
    return process.exitcode


def _alone(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    function(*arguments)
