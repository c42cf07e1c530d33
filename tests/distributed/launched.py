"""A script that users start, by torchrun or by itself: trains on two ranks and writes the weights that each ends with.

`python -m tests.distributed.launched <name of a case> <folder>`
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch

from tests.callbacks.penalties.test_resume import PowerCutError, StopBefore
from tests.integration.runs import Case, fit
from tests.models import KeepWeights, weights_of

SETTINGS = {
    "regularized": (
        ("elastic_net loss", "encoder"),
        ("target sparsity", "encoder"),
        ("own grad", "hidden"),
        ("constraint", "hidden"),
        ("spectral norm grad", "head"),
        ("normalization", "head"),
    ),
    "drops": True,
    "watchers": ("monitor",),
    "accumulate": 3,
}
# Everything in one run: accumulation, fp16, two ranks, stopped in the middle of an epoch and resumed.
RESUMED = SETTINGS | {"precision": "16-mixed", "interruption": "exception", "at_batch": 11, "save_every": 2}
CASES = {
    "torchrun": Case(strategy="ddp", **RESUMED),
    "ddp": Case(strategy="ddp", **RESUMED),
    "ddp_spawn": Case(strategy="ddp_spawn", precision="64-true", **SETTINGS),
    # Forks, as notebooks need it; "ddp_fork" is another name for it.
    "ddp_notebook": Case(strategy="ddp_notebook", precision="64-true", optimizer="adam", **SETTINGS),
    "fsdp2": Case(strategy="fsdp2", optimizer="adam", **SETTINGS),
}


class WriteWeights(KeepWeights):
    """Writes the whole weights at the end of training, on each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        torch.save(self.weights, self.folder / f"rank{trainer.global_rank}.pt")
        trainer.strategy.barrier()  # each rank reads what the other has written


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    case, write = CASES[name], WriteWeights(folder)
    if case.interruption == "none":
        module = fit(case, folder, write)
    else:
        with suppress(PowerCutError):
            fit(case, folder, StopBefore(case.at_batch))
            raise AssertionError("the run was not interrupted")
        module = fit(case, folder, write, resume=True)
    if case.strategy != "fsdp2":  # the module here has them, too, when others have trained it
        torch.testing.assert_close(weights_of(module), torch.load(folder / "rank0.pt"), rtol=0, atol=0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
