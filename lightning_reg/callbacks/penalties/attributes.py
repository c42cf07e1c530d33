"""Tensors that a user's penalty keeps in attributes as it trains, as in `self.start = [...]`: a resume needs them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_reg.callbacks.trainer.packages import rank_zero_warn


class OwnTensors:
    """The attributes added since the first `watch` that hold a tensor, or a list or dictionary of tensors."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}
        self._restored: dict[str, Any] = {}
        self.are_parts = False
        """Whether they may be parts of this rank, which cannot be saved in a checkpoint."""

    def watch(self, owner: object) -> None:
        """Leave out the attributes that `owner` has before its first run: its settings."""
        self._before, self._restored = self._before or dict(vars(owner)), {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Keep the state of a checkpoint for `put_back`."""
        self._restored = dict(state)

    def put_back(self, owner: object, device: torch.device) -> None:
        """Set the attributes that have been restored."""
        for name, value in self._restored.items():
            setattr(owner, name, _moved(value, device))
        self._restored = {}

    def state(self, owner: object) -> dict[str, Any]:
        """Return the attributes, on the CPU."""
        own = {
            name: value
            for name, value in vars(owner).items()
            if (name not in self._before or value is not self._before[name]) and _holds_tensors(value)
        }
        if own and self.are_parts:
            rank_zero_warn(
                f"{type(owner).__name__} keeps tensors in {', '.join(f'`self.{name}`' for name in own)}. With sharded"
                " weights they are not saved, so a resumed run may differ. Return them from `remember`."
            )
            return {}
        return self._restored | {name: _moved(value, torch.device("cpu")) for name, value in own.items()}


def _holds_tensors(value: object) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, Tensor) for item in value)
    # Other keys, such as parameters and their ids, mean nothing in another run.
    if isinstance(value, dict) and value:
        return all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items())
    return isinstance(value, Tensor)


def _moved(value: Any, device: torch.device) -> Any:
    """Return copies of the tensors in `value` on `device`."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    moved = [_moved(item, device) for item in value]
    return moved if isinstance(value, list) else tuple(moved)
