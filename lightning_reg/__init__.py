"""Regularization callbacks for PyTorch Lightning: a strength means the same in every way of training."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_reg.callbacks import *
    from lightning_reg.functional.lipschitz.bound import register_lipschitz_rule as register_lipschitz_rule
    from lightning_reg.functional.proximal.step_size import register_step_size as register_step_size
    from lightning_reg.schedules import *
    from lightning_reg.selection import Select as Select
    from lightning_reg.selection.layers import register_layer as register_layer
else:
    # Names are imported on first use: TensorBoard imports this package to find its plugin, and must not wait for torch.
    # The `__all__` of each of these rooms lists its public names.
    _LISTS = ("callbacks", "schedules")
    _OTHERS = {
        "Select": "selection",
        "register_layer": "selection.layers",
        "register_lipschitz_rule": "functional.lipschitz.bound",
        "register_step_size": "functional.proximal.step_size",
    }
    _ROOMS = ("callbacks", "ensemble", "functional", "metrics", "schedules", "selection", "tensorboard")

    def _room(name: str) -> object:
        return import_module(f"lightning_reg.{name}")

    def _public() -> list[str]:
        # Only authors of schedules need `Schedule` and `resolve`, so they stay in their room.
        return sorted({name for room in _LISTS for name in _room(room).__all__} - {"Schedule", "resolve"} | {*_OTHERS})

    def __getattr__(name: str) -> object:
        if name == "__all__":
            return _public()
        if name in _ROOMS:
            return _room(name)
        # Tools ask modules for names like `__wrapped__`. The answer must not wait for torch either.
        for room in (_OTHERS[name],) if name in _OTHERS else () if name.startswith("_") else _LISTS:
            if name in _OTHERS or name in _room(room).__all__:
                globals()[name] = getattr(_room(room), name)
                return globals()[name]
        msg = f"module 'lightning_reg' has no attribute {name!r}"
        raise AttributeError(msg, name=name, obj=sys.modules[__name__])  # for Python's "Did you mean"

    def __dir__() -> list[str]:
        return sorted({*globals(), *_public(), *_ROOMS})
