"""`lightning.pytorch` and its twin `pytorch_lightning`: callbacks are at home in both, whichever is imported first."""

import subprocess
import sys
from importlib import import_module
from typing import get_args

import pytest
from lightning.pytorch import Trainer

from lightning_reg import L1Penalty
from lightning_reg.callbacks.trainer.packages import Kind, is_a
from tests import HAS_TWIN

ROOMS = ("", ".callbacks", ".loggers", ".strategies", ".strategies.single_xla", ".strategies.xla")
NEWER = {"WeightAveraging": "2.6"}
"""The first version of Lightning that has it, where it is not the oldest that is supported."""
GONE = {"NeptuneLogger": "2.6"}
"""The first version of Lightning that no longer has it, or later."""


def class_of_lightning(name):
    rooms = [import_module(f"lightning.pytorch{room}") for room in ROOMS]
    return next((getattr(room, name) for room in rooms if hasattr(room, name)), None)


@pytest.mark.twin
def test_the_package_of_the_tests_is_the_one_that_was_asked_for():
    assert Trainer.__module__.partition(".")[0] == ("pytorch_lightning" if HAS_TWIN else "lightning")


@pytest.mark.twin
@pytest.mark.parametrize("name", get_args(Kind))
def test_a_class_of_lightning_is_known_with_its_subclasses_and_no_namesake(name):
    kind = class_of_lightning(name)
    if kind is None:
        version = import_module("lightning.pytorch").__version__
        assert version >= GONE[name] if name in GONE else version < NEWER[name]
        return
    own = type("Own", (kind,), {})
    namesake = type(name, (), {})
    others = set(get_args(Kind)) - {name}

    assert [is_a(object.__new__(cls), name) for cls in (kind, own, namesake)] == [True, True, False]
    # No kind here is a subclass of another.
    assert not is_a(object.__new__(kind), *others)


@pytest.mark.twin
def test_a_trainer_takes_a_callback_outside_of_a_list(tmp_path):
    penalty = L1Penalty(0.1)

    trainer = Trainer(callbacks=penalty, logger=False, default_root_dir=tmp_path, accelerator="cpu")

    assert penalty in trainer.callbacks


TRAIN = """
class Model({package}.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

def fit(*callbacks, **settings):
    data = torch.utils.data.TensorDataset(torch.randn(8, 4))
    trainer = {package}.Trainer(
        callbacks=[*callbacks], accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **settings,
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(data, 4))
"""


def run_python(code):
    """Run code in a fresh Python; return the lines it prints, and what it writes as messages and warnings."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.one_package("imports both by itself")
def test_the_twin_is_not_imported_unless_it_is_used():
    found, _ = run_python(f"""
import sys, torch, lightning.pytorch
from lightning_reg import *
{TRAIN.format(package="lightning.pytorch")}
fit(L1Penalty(0.1), TargetSparsity(L1Penalty(0.0, mode="proximal"), 0.5))
print(sorted(name for name in sys.modules if name.startswith(("pytorch_lightning", "lightning_fabric"))))
""")

    assert found == ["[]"]


IMPORTS = ["import pytorch_lightning", "from lightning_reg import L1Penalty, LipschitzMonitor"]


@pytest.mark.one_package("imports both by itself")
@pytest.mark.parametrize("imports", [IMPORTS, IMPORTS[::-1]], ids=["the twin first", "the twin later"])
def test_a_user_of_the_twin_meets_its_exceptions_and_its_logger_alone(imports):
    found, messages = run_python(f"""
import logging, torch
logging.basicConfig()
{"; ".join(imports)}
import lightning.fabric.utilities.exceptions as theirs, lightning_fabric.utilities.exceptions as twins
{TRAIN.format(package="pytorch_lightning")}
fit(L1Penalty(0.1), L1Penalty(0.2, mode="grad"))
for package in (twins, theirs):
    try:
        fit(LipschitzMonitor())
    except package.MisconfigurationException as error:
        print(error)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
logging.root.handlers[0].stream.write("quiet")
fit(L1Penalty(0.1))
""")

    loud, quiet = messages.split("quiet")
    assert [line.startswith("LipschitzMonitor needs a logger") for line in found] == [True, True]
    assert "INFO:pytorch_lightning.utilities.rank_zero:Regularization plan" in loud
    assert "INFO:pytorch_lightning.utilities.rank_zero:GPU available" in loud
    assert "INFO:lightning" not in messages
    assert "INFO" not in quiet
