"""What every test gets."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.models import Regressor, loader, weights_of

_FOLDER = Path(__file__).parent
# What the tests of such a folder share is costly (two processes of one group, TensorBoard servers): one worker has it.
_ON_ONE_WORKER = ("distributed", "tensorboard")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            for folder in _ON_ONE_WORKER:
                if item.path.is_relative_to(_FOLDER / folder):
                    item.add_marker(pytest.mark.xdist_group(folder))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
