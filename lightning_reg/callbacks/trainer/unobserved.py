"""A step of the module without side effects: nothing is logged, and the module is restored."""

import collections
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.callbacks.trainer.packages import DummyLogger, LightningModule, Trainer, is_param_in_hook_signature


def training_step(trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> Callable[[], Any]:
    """Return a function that calls `training_step` with a copy of `batch`, and logs nothing."""
    rest = [batch_idx] if is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2) else []

    def run() -> Any:
        with _silent(trainer, pl_module), trainer.precision_plugin.train_step_context():
            return pl_module.training_step(copy.deepcopy(batch), *rest)

    return run


@contextmanager
def _silent(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    names = ("log", "log_dict")
    before = {name: vars(pl_module)[name] for name in names if name in vars(pl_module)}
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    vars(pl_module).update(dict.fromkeys(names, _ignore))
    try:
        yield
    finally:
        for name in names:
            del vars(pl_module)[name]
        vars(pl_module).update(before)
        trainer.loggers = loggers


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""


class Kept:
    """The contents of a module and all modules within it: tensors, attributes, and the contents of containers.

    The inside of a user's own objects is not known, and not restored.
    """

    def __init__(self, root: nn.Module) -> None:
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: dict[Tensor, tuple[Tensor, Tensor | None]] = {}
        self._generators: dict[torch.Generator, Tensor] = {}
        for module in root.modules():
            self._attributes.append((module, dict(vars(module))))
            self._keep(vars(module).values())
            self._keep([*module.parameters(recurse=False), *module.buffers(recurse=False)])

    def put_back(self) -> None:
        """Restore everything."""
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for container, items in self._containers:
            _refill(container, items)
        with torch.no_grad():
            for tensor, (values, grad) in self._tensors.items():
                if tensor.shape != values.shape:
                    tensor.data = values.clone()
                elif not torch.equal(tensor, values):  # an unchanged tensor may be read-only
                    tensor.detach().copy_(values)
                if tensor.grad is not grad:
                    tensor.grad = grad
        for generator, state in self._generators.items():
            generator.set_state(state)

    def _keep(self, values: Any, *, inner: bool = False) -> None:
        for value in values:
            if isinstance(value, Tensor):
                if value not in self._tensors and value.layout is torch.strided and not value.is_quantized:
                    self._tensors[value] = (value.detach().clone(), value.grad if value.is_leaf else None)
            elif isinstance(value, torch.Generator):
                self._generators[value] = value.get_state()
            elif isinstance(value, (dict, list, set, collections.deque)) and not inner:
                self._containers.append((value, copy.copy(value)))
                self._keep(value.values() if isinstance(value, dict) else value, inner=True)


def _refill(container: Any, items: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(items)
    else:
        container.extend(items)
