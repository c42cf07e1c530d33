"""Read and set a rate that a module holds, or an object of the module, such as its configuration."""

from numbers import Real
from typing import Any

from torch import Tensor, nn
from typing_extensions import override


class _WithRates:
    """An object as one module sees it: some numbers are replaced, and everything else is unchanged.

    All modules of a model share a configuration, which is saved with the model. A rate is set in one module, and only
    temporarily.
    """

    def __init__(self, original: Any, rates: dict[str, float]) -> None:
        vars(self).update(rates, _original=original)

    @property  # type: ignore[misc]
    @override
    def __class__(self) -> type:  # for `isinstance`
        return type(vars(self)["_original"])

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_original"], name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            vars(self)[name] = value
        else:
            setattr(vars(self)["_original"], name, value)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        rates = dict(vars(self))
        return _WithRates, (rates.pop("_original"), rates)


def value_of(module: nn.Module, attribute: str) -> Any:
    """Return the value of `attribute`, which may be dotted; `None` if it does not exist or cannot be set."""
    held = _held(module, attribute)
    if held is None:
        return None
    holder, name = held
    return vars(holder).get(name) if isinstance(holder, nn.Module) else getattr(holder, name, None)


def is_rate(module: nn.Module, attribute: str) -> bool:
    """Tell whether `attribute` holds a number."""
    value = value_of(module, attribute)
    return isinstance(value, Real) and not isinstance(value, bool)


def set_value(module: nn.Module, attribute: str, value: float | None) -> None:
    """Set `attribute` for this module; an object that it shares with other modules does not change."""
    path, _, name = attribute.rpartition(".")
    if not path:
        setattr(module, name, value)
        return
    holder = vars(module)[path]
    if type(holder) is not _WithRates:
        holder = _WithRates(holder, {})
        vars(module)[path] = holder
    vars(holder)[name] = value


def give_back(module: nn.Module, attribute: str, built: float | None) -> None:
    """Undo `set_value`; `built` is the value with which the module was built."""
    path, _, name = attribute.rpartition(".")
    if not path:
        setattr(module, name, built)
        return
    holder = vars(module).get(path)
    if type(holder) is _WithRates:
        vars(holder).pop(name, None)
        if len(vars(holder)) == 1:
            vars(module)[path] = vars(holder)["_original"]


def _held(module: nn.Module, attribute: str) -> tuple[Any, str] | None:
    path, _, name = attribute.rpartition(".")
    if not path:
        return module, name
    holder = vars(module).get(path)  # one level only: a deeper value could not be set for this module alone
    return None if holder is None or isinstance(holder, (nn.Module, Tensor)) else (holder, name)
