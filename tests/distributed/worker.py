"""One rank of the pool in `conftest.py`: runs the functions it is sent."""

import importlib
import os
import pickle
import sys
import traceback
from multiprocessing.connection import Client

import torch
from torch import distributed

WORLD_SIZE = 2


def main(address: str, store: str, rank: str) -> None:
    # The variables that a launcher such as torchrun sets; Lightning then starts no processes itself.
    os.environ.update(RANK=rank, LOCAL_RANK=rank, NODE_RANK="0", WORLD_SIZE=str(WORLD_SIZE), GROUP_RANK="0")
    torch.set_num_threads(1)
    # A file as meeting point: ports can be taken.
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=WORLD_SIZE)
    with Client(address) as connection:
        connection.send(int(rank))
        while (job := connection.recv()) is not None:
            module, function, arguments = job
            torch.manual_seed(0)  # as in two new processes, whatever was sent before
            try:
                result = getattr(importlib.import_module(module), function)(*arguments)
            except Exception:  # whatever it is, the test has to show it
                answer = (False, traceback.format_exc())
            else:
                answer = (True, result)
            # Not `send`: that shares the memory of tensors between the processes.
            connection.send_bytes(pickle.dumps(answer))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
