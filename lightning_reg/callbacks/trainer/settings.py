"""The tables that say, before the first training step, what will be done to which weight and to which module."""

import inspect
import re
from collections.abc import Sequence

from lightning.pytorch import Callback


def call_of(callback: object) -> str:
    """Return the call that makes such a callback: its class and the arguments that it keeps under their names."""
    names = [name for name in inspect.signature(type(callback)).parameters if hasattr(callback, name)]
    return f"{type(callback).__name__}({', '.join(f'{name}={getattr(callback, name)!r}' for name in names)})"


def log_name(callback: object, callbacks: Sequence[object]) -> str:
    """Return the name of the callback's class in snake case; `-1`, `-2` ... tell those of one name apart."""
    name = _snake_case(callback)
    position = [other for other in callbacks if _snake_case(other) == name].index(callback)
    return f"{name}-{position}" if position else name


def _snake_case(callback: object) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(callback).__name__.removesuffix("Penalty"))
    return words.lower() or "penalty"


# They change nothing, so their settings are none of the run's.
_MONITORS = ("lightning_reg.callbacks.monitor", "lightning_reg.callbacks.lipschitz")


def _settings(callbacks: Sequence[Callback]) -> dict[str, bool | float | str]:
    """Return every setting of the callbacks that regularize, as `<name of the callback>.<name of the setting>`."""
    ours = [callback for callback in callbacks if _regularizes(callback)]
    settings: dict[str, bool | float | str] = {}
    for callback in ours:
        for name in inspect.signature(type(callback)).parameters:
            value = getattr(callback, name, None)
            if value is not None:
                plain = isinstance(value, (bool, int, float, str))
                settings[f"{log_name(callback, ours)}.{name}"] = value if plain else repr(value)
    return settings


def _regularizes(callback: Callback) -> bool:
    modules = [ancestor.__module__ for ancestor in type(callback).__mro__]
    return any(module.startswith("lightning_reg.") for module in modules) and not any(
        module in _MONITORS for module in modules
    )
