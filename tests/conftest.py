"""What every test gets."""

import random
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.models import Regressor, loader, weights_of
from tests.sweeps import left_out

_FOLDER = Path(__file__).parent
# What the tests of such a folder share is costly (two processes of one group, TensorBoard servers): one worker has it.
_ON_ONE_WORKER = ("distributed", "tensorboard")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="draw the cases of sweeps and of property tests by this seed again")
    parser.addoption("--whole", action="store_true", help="run all cases of sweeps, not a share of them")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:  # a worker of pytest-xdist is given that of its parent
        config.option.seed = random.SystemRandom().randrange(1_000_000)
    if config.pluginmanager.hasplugin("hypothesispytest"):
        import hypothesis  # here, for the tests that need a GPU also run where it is not installed

        config.option.hypothesis_seed = config.option.seed
        # No example fails for being slow: the machine may be busy.
        hypothesis.settings.register_profile(
            "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
        )
        hypothesis.settings.load_profile("suite")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (draws the same cases again: --seed={config.option.seed})"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            for folder in _ON_ONE_WORKER:
                if item.path.is_relative_to(_FOLDER / folder):
                    item.add_marker(pytest.mark.xdist_group(folder))
    yield
    # Last, of the tests that -k and -m have left: a case that is asked for by its name is run.
    if not config.option.whole:
        out = left_out(items, config.option.seed)
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]


@pytest.fixture(autouse=True)
def _same_numbers_everywhere() -> None:
    """Whatever ran before on the same worker, a test has one thread and these random numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


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

    import jsonargparse  # here, for the tests that need a GPU also run where it is not installed

    def build(text: str) -> Any:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Callback, "callback")
        config = parser.parse_string("callback:\n" + textwrap.indent(text, "  "))
        # `instantiate` has this name since jsonargparse 4.49.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        return instantiate(config).callback

    return build
