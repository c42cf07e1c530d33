"""Faults around a training lose nothing: kills, signals, errors, full disks, files cut short."""

import errno
import os
import random
import resource
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from tests.callbacks.penalties.test_resume import PowerCutError, StopBefore
from tests.event_files import scalars
from tests.integration.crash import exit_code_of
from tests.integration.effects import KINDS
from tests.integration.runs import (
    BATCHES,
    PARTS,
    TOGETHER_IN_ONE_RUN,
    Case,
    Data,
    Module,
    callbacks_of,
    interrupt,
    newest_checkpoint,
    stopped_and_resumed,
    train,
    trainer_of,
)
from tests.models import weights_of

# Everything that has a state, or a schedule; each alone, and with dropout rates on top.
CASES = {
    name: Case(tuple((name, part) for part in PARTS), optimizer="adam", accumulate=2, at_batch=11, save_every=2)
    for name in KINDS
    if name.startswith(("elastic_net", "group_lasso proximal", "spectral", "target", "constraint", "normalization"))
} | {"dropout": Case((), drops=True, optimizer="adam", at_batch=11, save_every=4)}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

EVERYTHING = Case(
    TOGETHER_IN_ONE_RUN,
    drops=True,
    watchers=("monitor",),
    optimizer="adam",
    validates=True,
    at_batch=9,
    save_every=2,
)


@cache
def uninterrupted(case):
    with TemporaryDirectory() as folder:
        return train(replace(case, interruption="none"), Path(folder))


@every_case
@pytest.mark.parametrize("interruption", ["SIGKILL", "SIGKILL while a checkpoint is written"])
def test_a_killed_run_goes_on_from_its_last_checkpoint_bit_for_bit(case, interruption, tmp_path):
    case = replace(case, interruption=interruption)
    assert case.at_batch % BATCHES  # in the middle of an epoch

    assert exit_code_of(interrupt, case, tmp_path) == -signal.SIGKILL
    checkpoint = newest_checkpoint(tmp_path)
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    half = [
        path for path in tmp_path.iterdir() if path.is_file() and 0 < path.stat().st_size < checkpoint.stat().st_size
    ]
    resumed = train(case, tmp_path, resume=True)

    assert step > BATCHES / case.accumulate
    assert len(half) == (interruption != "SIGKILL")
    torch.testing.assert_close(resumed, uninterrupted(case), rtol=0, atol=0)


def test_a_run_that_is_told_to_end_goes_on_bit_for_bit(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)

    resumed = stopped_and_resumed(replace(EVERYTHING, interruption="SIGTERM"), tmp_path)

    assert signal.getsignal(signal.SIGTERM) == handler
    torch.testing.assert_close(resumed, uninterrupted(replace(EVERYTHING, watchers=())), rtol=0, atol=0)


def plain(owner):
    """Return what an object holds under its own names: small values as they are, of hooks how many."""
    held = {}
    for name, value in vars(owner).items():
        if name.endswith(("hooks", "hooks_with_kwargs")):
            held[name] = len(value) if value else 0
        else:
            held[name] = value if isinstance(value, (bool, int, float, str)) else type(value)
    return held


def left_by(trainer, module, callbacks):
    """Return everything that a callback could have left behind."""
    return {
        "modules": {name: (type(part), plain(part)) for name, part in module.named_modules()},
        "parameters": {
            name: (
                type(value),
                value.shape,
                value.requires_grad,
                value._backward_hooks,
                value._post_accumulate_grad_hooks,
            )
            for name, value in module.named_parameters()
        },
        "buffers": [name for name, _ in module.named_buffers()],
        "optimizers": [
            (type(optimizer), plain(optimizer), [sorted(group) for group in optimizer.param_groups])
            for optimizer in trainer.optimizers
        ],
        "callbacks": [callback for callback in trainer.callbacks if callback not in callbacks],
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
    }


class BreakingError(Exception):
    """An error in the user's code."""


class Breaking(Module):
    """Fails in one of its methods, at the second call: what is before it has run once.

    Of training steps it is the second batch's: the dropout callbacks look at steps of the first one beforehand.
    """

    def __init__(self, case, method, error):
        super().__init__(case)
        calls = []

        def fail(*args, **kwargs):
            calls.append(1)
            once = method in ("setup", "configure_optimizers", "on_fit_start", "on_train_start")
            if args[1] == 1 if method == "training_step" else len(calls) == (1 if once else 2):
                raise error
            return original(*args, **kwargs)

        original = getattr(self, method)
        setattr(self, method, fail)


class BreakingAdam(torch.optim.Adam):
    """Fails when the first half of all weights has been updated in the second step."""

    def __init__(self, parameters):
        first, *others = parameters
        self.groups_left = 3
        super().__init__([{"params": [first]}, {"params": others}], lr=0.01)

    def _init_group(self, *args):
        if not self.groups_left:
            raise BreakingError
        self.groups_left -= 1
        return super()._init_group(*args)


METHODS = [
    "setup",
    "configure_optimizers",
    "on_fit_start",
    "on_train_start",
    "validation_step",
    "on_train_batch_start",
    "training_step",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_save_checkpoint",
]


def broken_run(case, module, folder, error=BreakingError):
    """Train until it breaks; return what is left."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    trainer = trainer_of(case, folder, enable_checkpointing=True)
    given = list(trainer.callbacks)
    with pytest.raises(error):
        trainer.fit(module, datamodule=Data(case))
    return trainer, left_by(trainer, module, given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [BreakingError(), KeyboardInterrupt()], ids=["error", "Ctrl+C"])
def test_after_an_error_in_the_users_code_the_module_is_as_in_a_run_without_callbacks(method, error, tmp_path):
    case = replace(EVERYTHING, interruption="exception")
    kind = SystemExit if isinstance(error, KeyboardInterrupt) else BreakingError

    _, left = broken_run(case, Breaking(case, method, error), tmp_path / "with", kind)

    bare = Case((), optimizer="adam", save_every=2, validates=True, interruption="exception")
    module = Breaking(bare, method, error)
    module.network.dropout.p = 0.1  # as built
    _, expected = broken_run(bare, module, tmp_path / "without", kind)
    assert left == expected


def test_an_optimizer_that_fails_in_the_middle_of_its_update_leaves_weights_as_the_network_uses_them(tmp_path):
    module = Module(EVERYTHING)
    module.optimizer_factory = BreakingAdam

    trainer, left = broken_run(EVERYTHING, module, tmp_path)

    bare = Module(Case(()))
    bare.network.dropout.p = 0.1
    bare.optimizer_factory = BreakingAdam
    _, expected = broken_run(replace(EVERYTHING, regularized=(), drops=False, watchers=()), bare, tmp_path / "without")
    assert left == expected
    assert torch.linalg.matrix_norm(module.network.head.weight, 2).item() == pytest.approx(1.0, rel=1e-3)
    before = weights_of(module)
    (optimizer,) = trainer.optimizers
    optimizer.groups_left = 2
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    torch.testing.assert_close(weights_of(module), before, rtol=0, atol=0)  # no hook is left


@pytest.mark.parametrize("method", ["training_step", "on_before_optimizer_step", "validation_step"])
def test_callbacks_of_a_run_that_failed_train_as_new_ones(method, tmp_path):
    case = replace(EVERYTHING, interruption="exception", watchers=())
    trainer, _ = broken_run(case, Breaking(case, method, BreakingError()), tmp_path)
    used = [
        callback for callback in trainer.callbacks if type(callback).__module__.startswith(("lightning_reg", "tests"))
    ]
    assert len(used) == len(callbacks_of(case))
    module = Module(case)

    bare = replace(case, regularized=(), drops=False, interruption="none")
    trainer_of(bare, tmp_path / "again", *used).fit(module, datamodule=Data(case))

    torch.testing.assert_close(weights_of(module), uninterrupted(case), rtol=0, atol=0)


class FillDisk(StopBefore):
    """Lets no file grow beyond those that there are, as a full disk or a quota does."""

    def on_train_batch_start(self, trainer, *args):
        if not self.left:
            largest = max(path.stat().st_size for path in Path(trainer.default_root_dir).rglob("*") if path.is_file())
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, resource.RLIM_INFINITY))
        self.left -= 1


LOGGERS = {
    # Not 0, at which its thread waits for nothing and keeps the others from their work.
    "TensorBoard": lambda folder: TensorBoardLogger(folder, flush_secs=0.01),
    "CSV": lambda folder: CSVLogger(folder, flush_logs_every_n_steps=1),
}


def train_on_a_full_disk(logger, folder):
    """Run in a process of its own: fail with the logger's error, and leave a clean module."""
    module = Module(EVERYTHING)
    settings = {"logger": LOGGERS[logger](folder), "log_every_n_steps": 1, "max_epochs": 20}
    trainer = trainer_of(EVERYTHING, folder, FillDisk(5), **settings)
    given = list(trainer.callbacks)
    with pytest.raises(OSError, match="File too large") as caught:
        trainer.fit(module, datamodule=Data(EVERYTHING))
    assert caught.value.errno == errno.EFBIG
    assert 5 <= trainer.global_step < 20 * BATCHES
    assert trainer.callbacks == given
    assert module.network.dropout.p == 0.1
    assert torch.linalg.matrix_norm(module.network.head.weight, 2).item() == pytest.approx(1.0, rel=1e-2)
    for part in module.modules():
        assert "forward" not in vars(part)
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_disk_that_is_full_for_the_logger_is_its_own_error_and_nothing_else_is_lost(logger, tmp_path):
    assert exit_code_of(train_on_a_full_disk, logger, tmp_path) == 0


def save_on_a_full_disk(case, folder):
    """Run in a process of its own: fail when a checkpoint does not fit on the disk."""
    with pytest.raises(OSError, match="File too large"):
        trainer_of(case, folder, FillDisk(case.at_batch)).fit(Module(case), datamodule=Data(case))


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before_it(tmp_path):
    case = replace(EVERYTHING, watchers=(), interruption="exception")

    assert exit_code_of(save_on_a_full_disk, case, tmp_path) == 0

    assert newest_checkpoint(tmp_path).stem == "epoch=1-step=8"
    torch.testing.assert_close(train(case, tmp_path, resume=True), uninterrupted(case), rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.7, 0.8, 0.95])
def test_an_event_file_cut_short_is_read_up_to_the_cut_and_the_next_run_goes_on(share, tmp_path):
    case = replace(EVERYTHING, interruption="exception", save_every=7)
    with pytest.raises(PowerCutError):
        train(case, tmp_path, interrupt=True)
    whole = scalars(tmp_path)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    os.truncate(events, int(share * events.stat().st_size))

    left = scalars(tmp_path)
    resumed = train(case, tmp_path, resume=True)
    multiplexer = EventMultiplexer(size_guidance={"tensors": 0}).AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()

    assert 0 < sum(map(len, left.values())) < sum(map(len, whole.values()))
    for tag, steps in left.items():
        assert list(steps.items()) == list(whole[tag].items())[: len(steps)]
    events.rename(tmp_path / "first run")
    second = scalars(tmp_path)
    for tag in ("reg/penalty", "reg/dropout", "reg/sparsity", "reg/target_sparsity/reached"):
        assert {7, 11} <= set(second[tag])
        shown = [event.step for event in multiplexer.Tensors("log", tag)]
        assert shown == sorted([*left.get(tag, ()), *second[tag]])
    torch.testing.assert_close(resumed, uninterrupted(replace(case, watchers=())), rtol=0, atol=0)
