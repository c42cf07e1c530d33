"""Regularization for PyTorch Lightning: callbacks that mean the same in every way of training."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_reg.callbacks import (
        DropoutScheduler,
        ElasticNetPenalty,
        GroupLassoPenalty,
        L1Penalty,
        L2Penalty,
        LipschitzMonitor,
        MonteCarloDropout,
        Penalty,
        RegularizationMonitor,
        SpectralConstraint,
        SpectralNormalization,
        SpectralNormPenalty,
        TargetSparsity,
    )
    from lightning_reg.functional.lipschitz import register_lipschitz_rule
    from lightning_reg.functional.step_size import register_step_size
    from lightning_reg.schedules import (
        Constant,
        Cosine,
        Exponential,
        Linear,
        Piecewise,
        Sequence,
        curriculum_dropout,
        early_dropout,
        late_dropout,
    )
    from lightning_reg.selection import Select

__all__ = [
    "Constant",
    "Cosine",
    "DropoutScheduler",
    "ElasticNetPenalty",
    "Exponential",
    "GroupLassoPenalty",
    "L1Penalty",
    "L2Penalty",
    "Linear",
    "LipschitzMonitor",
    "MonteCarloDropout",
    "Penalty",
    "Piecewise",
    "RegularizationMonitor",
    "Select",
    "Sequence",
    "SpectralConstraint",
    "SpectralNormPenalty",
    "SpectralNormalization",
    "TargetSparsity",
    "curriculum_dropout",
    "early_dropout",
    "late_dropout",
    "register_lipschitz_rule",
    "register_step_size",
]

if not TYPE_CHECKING:
    # Names are imported on first use: TensorBoard looks into this package for its plugin, and must not wait for torch.
    _HOMES = ("schedules", "selection", "functional.step_size", "functional.lipschitz", "callbacks")
    _MODULES = (
        "callbacks",
        "ensemble",
        "functional",
        "metrics",
        "module_selection",
        "schedules",
        "selection",
        "tensorboard",
    )

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f"lightning_reg.{name}")
        if name in __all__:
            for home in _HOMES:
                module = import_module(f"lightning_reg.{home}")
                if hasattr(module, name):
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        msg = f"module 'lightning_reg' has no attribute {name!r}"
        raise AttributeError(msg, name=name, obj=sys.modules[__name__])  # for Python's "Did you mean"

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
