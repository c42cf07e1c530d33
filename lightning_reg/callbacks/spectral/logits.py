"""Record the logits of a classifier at each call in a training step."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.penalties.listener import Listener
from lightning_reg.callbacks.trainer.packages import LightningModule, MisconfigurationException
from lightning_reg.functional.tensors.shards import whole


class Call(NamedTuple):
    """One call of the classifier."""

    inputs: tuple[Any, ...]
    """The positional arguments."""
    named: tuple[str, ...]
    """The names of the keyword arguments."""
    outputs: list[Tensor]
    """Copies of all floating tensors that it returned, with their graph."""


class LogitsListener(Listener):
    """A listener that also keeps the arguments of each call.

    Args:
        root: The module that is trained.
        target: The classifier.

    """

    def __init__(self, root: LightningModule | None = None, target: nn.Module | None = None) -> None:
        # Copies, because `training_step` may change the logits in place.
        super().__init__(root, () if target is None else (target,), torch.clone)
        self._calls: list[Call] = []

    @override
    def __reduce__(self) -> tuple[type["LogitsListener"], tuple[()]]:
        return LogitsListener, ()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's has no types
    @override
    def __call__(self, module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        super().__call__(module, inputs, named, output)
        outputs = self.take()
        if outputs:
            self._calls.append(Call(inputs, tuple(named), outputs))

    def take_calls(self) -> list[Call]:
        """Return, once, the calls with a gradient since the last time."""
        calls, self._calls = self._calls, []
        return calls

    @override
    def drop(self) -> None:
        super().drop()
        self._calls = []


def checked_logits(outputs: list[Tensor]) -> Tensor:
    """Return the logits. Raise unless they are one tensor of shape (samples, classes)."""
    if len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1:  # noqa: PLR2004  # samples and classes
        return whole(outputs[0])
    shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
    msg = (
        "The `target` of MarginPenalty must return logits, one tensor of shape (samples, classes) with at least two"
        f" classes, got {shapes}. Pass `target=`, the name of the part of the network that returns them."
    )
    raise MisconfigurationException(msg)
