"""Lightning comes in two packages: `lightning.pytorch`, and its twin `pytorch_lightning`, with separate classes.

Only this file imports Lightning and checks for its classes. Its functions and classes stand for both packages. It uses
the twin if users have imported it, and never imports it itself.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Literal

from lightning_utilities.core import rank_zero
from torch import nn
from typing_extensions import override

# Both packages print through this module, and the package that was imported last sets its options.
_settings = {name: getattr(rank_zero, name) for name in ("log", "rank_zero_deprecation_category")}

import lightning.fabric.utilities.exceptions
import lightning.pytorch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.fabric.utilities.logger import _flatten_dict as flatten_dict
from lightning.fabric.utilities.logger import _sanitize_params as sanitize_params
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

if "pytorch_lightning" in sys.modules:
    # Users of the twin have set the level of its logger, and did not import the other package.
    vars(rank_zero).update(_settings)

__all__ = [
    "Callback",
    "DummyLogger",
    "Kind",
    "LightningModule",
    "Logger",
    "MisconfigurationException",
    "Trainer",
    "flatten_dict",
    "get_filesystem",
    "has_backward",
    "has_forward",
    "is_a",
    "is_param_in_hook_signature",
    "rank_zero_info",
    "rank_zero_warn",
    "sanitize_params",
]

Kind = Literal[
    "CSVLogger",
    "CometLogger",
    "DeepSpeedStrategy",
    "EarlyStopping",
    "FSDPStrategy",
    "GradientAccumulationScheduler",
    "LightningModule",
    "MLFlowLogger",
    "ModelParallelStrategy",
    "NeptuneLogger",
    "SingleDeviceXLAStrategy",
    "StochasticWeightAveraging",
    "TensorBoardLogger",
    "Timer",
    "WandbLogger",
    "WeightAveraging",  # not in the oldest Lightning that is supported
    "XLAStrategy",
]


def is_a(thing: object, *kinds: Kind) -> bool:
    """Tell whether `thing` is an instance of one of these classes, of either package."""
    return any(_is_lightnings(ancestor, kinds) for ancestor in type(thing).__mro__)


def has_forward(module: nn.Module) -> bool:
    """Tell whether a module defines `forward`; torch and Lightning define one that only raises."""
    owner = next(ancestor for ancestor in type(module).__mro__ if "forward" in vars(ancestor))
    return owner is not nn.Module and not _is_lightnings(owner, ["LightningModule"])


def has_backward(pl_module: LightningModule) -> bool:
    """Tell whether a module defines `backward`, which may create gradients that no graph shows."""
    owner = next(ancestor for ancestor in type(pl_module).__mro__ if "backward" in vars(ancestor))
    return not _is_lightnings(owner, ["LightningModule"])


def _is_lightnings(kind: type, names: Sequence[Kind]) -> bool:
    return kind.__name__ in names and kind.__module__.startswith(("lightning.pytorch.", "pytorch_lightning."))


class Callback(lightning.pytorch.Callback):
    """A callback of both packages: LightningCLI and `Trainer(callbacks=...)` of the twin accept only its class."""


class MisconfigurationException(lightning.fabric.utilities.exceptions.MisconfigurationException):
    """The exception of both packages: `except` with the class of either package catches it."""


class _Join(MetaPathFinder):
    """Makes the two classes above subclasses of the twin's classes once these exist; finds no modules itself.

    The twin is often imported after this package, and its LightningCLI checks classes before they have instances.
    """

    _is_done = False

    @override
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if not self._is_done and fullname.startswith("pytorch_lightning."):
            self.join()

    def join(self) -> None:
        """Add the twin's classes to the bases, if it has been imported."""
        callback = getattr(sys.modules.get("pytorch_lightning.callbacks.callback"), "Callback", None)
        exceptions = sys.modules.get("lightning_fabric.utilities.exceptions")
        exception = getattr(exceptions, "MisconfigurationException", None)
        if callback and exception:
            Callback.__bases__ += (callback,)
            MisconfigurationException.__bases__ += (exception,)
            self._is_done = True


_twin = _Join()
_twin.join()
sys.meta_path.insert(0, _twin)
