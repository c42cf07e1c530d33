"""Modules that join a model while it trains."""

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook


class ModuleChanges:
    """Notes that a module has been put into another one, anywhere, until `end`: it costs nothing where none is."""

    def __init__(self) -> None:
        self.seen = False
        self._handle = register_module_module_registration_hook(self._note)

    def end(self) -> None:
        """Note nothing any more."""
        self._handle.remove()

    def _note(self, module: nn.Module, name: str, submodule: Any) -> None:
        self.seen = True
