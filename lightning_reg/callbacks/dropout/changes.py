"""Modules that join a model while it trains."""

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook


class ModuleChanges:
    """Notes, until `end`, whether a module was put into another one anywhere; it costs nothing otherwise."""

    def __init__(self) -> None:
        self.seen = False
        self._handle = register_module_module_registration_hook(self._note)

    def end(self) -> None:
        """Stop noting."""
        self._handle.remove()

    def _note(self, module: nn.Module, name: str, submodule: Any) -> None:
        self.seen = True
