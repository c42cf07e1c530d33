"""Fixtures and settings of all tests."""

import os
import random
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests import HAS_TWIN
from tests.models import Regressor, loader, weights_of
from tests.sweeps import left_out, left_out_for_the_twin, named

_FOLDER = Path(__file__).parent
# No Trainer is in these: `tests/test_structure.py` holds it.
WITHOUT_TRAINER = (
    "ensemble",
    "functional",
    "metrics",
    "schedules",
    "selection",
    "test_docstrings.py",
    "test_packaging.py",
    "test_public_api.py",
    "test_structure.py",
)
# These need not run for the twin of Lightning.
_ONE_PACKAGE = {
    **dict.fromkeys(WITHOUT_TRAINER, "no Trainer"),
    "tensorboard": "what a page of TensorBoard shows: log files are the same",
    "test_docs.py": "the documentation is written for `lightning`",
    "test_examples.py": "examples are written for `lightning`",
    "test_examples_cli.py": "examples are written for `lightning`",
}
_SHARE_OF_TWIN = 0.03

# Tests in these folders share costly resources (two processes of one group, TensorBoard servers): one worker has them.
# The marker `xdist_group` would say so, but pytest-xdist 3.8 loses it under pytest 9.2.
_ON_ONE_WORKER = ("tests/distributed/", "tests/tensorboard/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="draw the cases of sweeps and of property tests by this seed again")
    parser.addoption("--whole", action="store_true", help="run all cases of sweeps, not a share of them")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        told = getattr(config, "workerinput", {})  # what a worker of pytest-xdist knows of its parent
        config.option.seed = told.get("seed", random.SystemRandom().randrange(1_000_000))
    if config.pluginmanager.hasplugin("hypothesispytest"):
        import hypothesis  # here, because the tests that need a GPU also run where it is not installed

        config.option.hypothesis_seed = config.option.seed
        # No example fails for being slow: the machine may be busy.
        hypothesis.settings.register_profile(
            "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
        )
        hypothesis.settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (draws the same cases again: --seed={config.option.seed})"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    out = {item for item in items if HAS_TWIN and _needs_one_package(item)}
    yield
    # Last, of the tests that -k and -m have left: a case that is asked for by its name is run.
    if not config.option.whole:
        asked = named(items, config.args, config.invocation_params.dir)
        out |= left_out(items, config.option.seed, asked)
        if HAS_TWIN:
            rest = [item for item in items if item not in out]
            out |= left_out_for_the_twin(rest, config.option.seed, _SHARE_OF_TWIN, asked)
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]


def _needs_one_package(item: pytest.Item) -> bool:
    is_left_out = any(item.path.is_relative_to(_FOLDER / name) for name in _ONE_PACKAGE)
    return is_left_out or not item.path.is_relative_to(_FOLDER) or bool(item.get_closest_marker("one_package"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        """Keeps a file on one worker, as `--dist loadfile` does, and some folders."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in _ON_ONE_WORKER if file.startswith(folder)), file)

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin a test and its fixtures with one thread and the same random numbers, whatever ran before on this worker."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # what `seed_everything` leaves
        os.environ.pop(name, None)


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., Trainer]:
    """Return a function that makes a quiet Trainer for the CPU."""

    def make(*callbacks: Callback, **settings: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
        }
        return Trainer(callbacks=list(callbacks), **(defaults | settings))

    return make


@pytest.fixture
def fit(trainer_of: Callable[..., Trainer]) -> Callable[..., dict[str, torch.Tensor]]:
    """Return a function that trains a module with callbacks and returns its weights."""

    def run(*callbacks: Callback, module: Regressor | None = None, data: Any = None, **settings: Any) -> dict[str, Any]:
        module = module or Regressor()
        trainer_of(*callbacks, **settings).fit(module, loader() if data is None else data)
        return weights_of(module)

    return run


@pytest.fixture
def callback_from_yaml() -> Callable[[str], Any]:
    """Return a function that builds a callback from its YAML as LightningCLI does."""

    import jsonargparse  # here, because the tests that need a GPU also run where it is not installed

    def build(text: str) -> Any:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Callback, "callback")
        config = parser.parse_string("callback:\n" + textwrap.indent(text, "  "))
        # `instantiate` has this name since jsonargparse 4.49.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        return instantiate(config).callback

    return build
