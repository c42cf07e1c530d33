"""Every callback on a CUDA device ends in the weights of the loop by hand, in every way of training."""

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from tests.gpu.test_penalty import one_rank  # noqa: F401  # a fixture
from tests.integration.effects import KINDS
from tests.integration.runs import TOGETHER_IN_ONE_RUN, Case, expected, stopped_and_resumed
from tests.reference import assert_same_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Those of NCCL, FSDP1 and the compiler differ from one version of torch to the next.
    pytest.mark.filterwarnings("ignore"),
]

every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def ends_as_the_loop(tmp_path):
    """Return a function that trains a case on the device and compares its weights."""

    def check(case, **settings):
        torch._dynamo.reset()
        actual = stopped_and_resumed(case, tmp_path, **({"accelerator": "gpu", "devices": 1} | settings))

        assert_same_weights(actual, expected(case, "cuda"), rtol=case.tolerance())

    return check


def case_of(name, **settings):
    """Return a case with one kind on two layers, if a run may have two of it."""
    return Case(((name, "encoder"), (name, "hidden"))[: 1 if KINDS[name].once else 2], **settings)


@every_kind
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_plain_training(ends_as_the_loop, name, accumulate, precision):
    ends_as_the_loop(case_of(name, accumulate=accumulate, precision=precision, validates=True))


@every_kind
@pytest.mark.parametrize("clipping", ["norm", "value"])
def test_clipping(ends_as_the_loop, name, clipping):
    ends_as_the_loop(case_of(name, clipping=clipping))


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        (name, optimizer)
        for name in KINDS
        for optimizer in ("sgd", "fused sgd", "adam", "fused adam")
        if "sgd" in optimizer or not KINDS[name].needs_sgd
    ],
)
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision(ends_as_the_loop, name, precision, optimizer):
    ends_as_the_loop(case_of(name, precision=precision, accumulate=3, optimizer=optimizer))


@every_kind
@pytest.mark.parametrize("compile_mode", ["default", "reduce-overhead"])  # without and with CUDA graphs
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_compiled_modules(ends_as_the_loop, name, compile_mode, precision):
    ends_as_the_loop(case_of(name, compile_mode=compile_mode, precision=precision))


STRATEGIES = {
    "ddp": "ddp",
    "ddp that looks for unused parameters": "ddp_find_unused_parameters_true",
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
    "fsdp1": lambda: FSDPStrategy(auto_wrap_policy={nn.Linear}),
}


@pytest.mark.parametrize(
    ("strategy", "name"),
    [(strategy, name) for strategy in STRATEGIES for name in KINDS if strategy != "fsdp1" or KINDS[name].per_entry],
)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.usefixtures("one_rank")
def test_nccl_with_one_rank(ends_as_the_loop, strategy, name, accumulate):
    ends_as_the_loop(case_of(name, accumulate=accumulate), strategy=STRATEGIES[strategy])


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [
        *((strategy, precision) for strategy in ("auto", "ddp") for precision in ("32-true", "16-mixed", "bf16-mixed")),
        # Lightning has no scaler for FSDP2.
        *((STRATEGIES["fsdp2"], precision) for precision in ("32-true", "bf16-mixed")),
    ],
)
@pytest.mark.usefixtures("one_rank")
def test_everything_in_one_run_that_is_stopped_and_resumed(ends_as_the_loop, strategy, precision):
    case = Case(
        TOGETHER_IN_ONE_RUN,
        drops=True,
        watchers=("monitor",),
        optimizer="adam",
        precision=precision,
        accumulate=3,
        validates=True,
        interruption="exception",
        at_batch=11,
        save_every=2,
    )
    ends_as_the_loop(case, strategy=strategy)
