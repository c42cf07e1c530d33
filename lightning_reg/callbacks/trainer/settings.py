"""Read a callback's arguments, for its `repr`, its name in logs and the hyperparameters of a run."""

import inspect
import re
from collections.abc import Sequence


def settings_of(callback: object) -> dict[str, object]:
    """Return the constructor arguments that the callback stores under their names."""
    names = inspect.signature(type(callback)).parameters
    return {name: getattr(callback, name) for name in names if hasattr(callback, name)}


def call_of(callback: object, *, without: str = "") -> str:
    """Return the constructor call that makes an equal callback, except for the argument `without`."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings_of(callback).items() if name != without)
    return f"{type(callback).__name__}({arguments})"


def log_name(callback: object, callbacks: Sequence[object]) -> str:
    """Return the name of the callback's class in snake case; `-1`, `-2` ... distinguish callbacks of one class."""
    name = _snake_case(callback)
    position = [other for other in callbacks if _snake_case(other) == name].index(callback)
    return f"{name}-{position}" if position else name


def regularization_settings(callbacks: Sequence[object]) -> dict[str, bool | float | str]:
    """Return all settings of the regularizing callbacks, named `<callback>.<setting>`."""
    ours = [callback for callback in callbacks if getattr(callback, "regularizes", False)]
    return {
        f"{log_name(callback, ours)}.{name}": value if isinstance(value, (bool, int, float, str)) else repr(value)
        for callback in ours
        for name, value in settings_of(callback).items()
        if value is not None
    }


def _snake_case(callback: object) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(callback).__name__.removesuffix("Penalty"))
    return words.lower() or "penalty"
