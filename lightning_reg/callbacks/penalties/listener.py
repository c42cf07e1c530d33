"""Record the outputs of modules at each call in a training step."""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.trainer import state
from lightning_reg.callbacks.trainer.nested import tensors_in
from lightning_reg.callbacks.trainer.packages import LightningModule


class Heard(IntEnum):
    """The state of a module's record."""

    NO_CALL = 0
    NO_GRAPH = 1
    """It was called, but only under `torch.no_grad()`."""
    NO_GRADIENT = 2
    """Its output has no gradient, for example because it is frozen."""
    A_GRADIENT = 3


class Listener:
    """A forward hook on some modules, which makes a term of every floating tensor that they return in a training step.

    Copies of a module, also pickled ones, have its hooks; a copy of this listener records nothing.

    Args:
        root: The module that is trained.
        modules: The modules to record.
        term: Maps an output to a scalar.

    """

    def __init__(
        self,
        root: LightningModule | None = None,
        modules: Iterable[nn.Module] = (),
        term: Callable[[Tensor], Tensor] = torch.sum,
    ) -> None:
        self._root = root
        self._term = term
        self._modules = frozenset(modules)
        self._handles = [module.register_forward_hook(self, with_kwargs=True) for module in self._modules]
        self._terms: list[Tensor] = []
        self.is_wanted = False
        """Whether to make terms. It changes between batches only, because checkpointed modules are called again."""
        self.heard = dict.fromkeys(self._modules, Heard.NO_CALL)
        """The most recorded of each module."""

    @override
    def __reduce__(self) -> tuple[type["Listener"], tuple[()]]:
        return Listener, ()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's has no types
    def __call__(self, module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        """Make the terms of one call."""
        if self._root is None or module not in self._modules:
            return
        # Nothing is recorded in evaluation, or when another callback calls the network.
        running = state.running_hook(self._root)
        if running not in ("training_step", "backward"):
            return
        has_graph = torch.is_grad_enabled()
        floating = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.requires_grad]
        floating = floating if has_graph else []
        # Activation checkpointing calls the module again in backward, and counts the saved tensors: so everything must
        # be computed again, but it is recorded already.
        terms = [self._term(tensor) for tensor in floating] if self.is_wanted else []
        if running == "training_step":
            self._terms += terms
            now = Heard.A_GRADIENT if floating else Heard.NO_GRADIENT if has_graph else Heard.NO_GRAPH
            self.heard[module] = max(self.heard[module], now)

    def take(self) -> list[Tensor]:
        """Return, once, the terms since the last time."""
        terms, self._terms = self._terms, []
        return terms

    def drop(self) -> None:
        """Forget the terms since the last time."""
        self._terms = []

    def remove(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()
        # Code compiled with the hook in it still calls this.
        self._root = None
        self.drop()
