"""Which attributes of a module are dropout rates, by its type, the name of its class, and its source."""

import re

import torch
from torch import nn

from lightning_reg.callbacks.dropout.held import is_rate, value_of
from lightning_reg.callbacks.dropout.source import Source, source_of
from lightning_reg.functional.dropout import is_drop_path

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_IN_ATTENTION = ("dropout", "attention_dropout")
_DROPOUT_CLASS = re.compile("dropout|drop_?path|drop_?block|drop_?connect|stochastic_?depth", re.IGNORECASE)
_RATE_NAME = re.compile(r"p|rate|prob|probability|.*drop.*", re.IGNORECASE)


def rates_of(module: nn.Module, *steps: str) -> list[str]:
    """Return the attributes of `module` that are dropout rates.

    Args:
        module: Any module; its children are not searched.
        steps: Its methods that are called besides `forward`.

    Returns:
        Names of attributes; dotted for attributes of an object that the module holds (`config.dropout`).

    """
    if isinstance(module, nn.RNNBase):
        # They drop between layers only, so with one layer nothing is dropped.
        return ["dropout"] if module.num_layers > 1 else []
    if isinstance(module, nn.MultiheadAttention):
        return ["dropout"]
    source = source_of(module, *steps)
    names = [*_rates_by_type(module), *_rates_by_name(module, source)]
    names += [call.attribute for call in source.calls if call.attribute and is_rate(module, call.attribute)]
    return list(dict.fromkeys(names))


def is_dropout(module: nn.Module) -> bool:
    """Tell whether a module does nothing but dropout, by its type or the name of its class."""
    return isinstance(module, _DROPOUTS) or bool(_DROPOUT_CLASS.search(type(module).__name__))


def scripted_rate(module: nn.Module) -> float:
    """Return the rate of a dropout module that `torch.jit.script` turned into a constant; 0 for other modules."""
    if not isinstance(module, torch.jit.ScriptModule):
        return 0.0
    kind = getattr(module, "original_name", "")
    rate = getattr(module, "p", None) if kind in {item.__name__ for item in _DROPOUTS} else None
    return rate if isinstance(rate, float) else 0.0


def _rates_by_type(module: nn.Module) -> list[str]:
    if isinstance(module, _DROPOUTS):
        return ["p"]
    if is_drop_path(module) and is_rate(module, "p"):
        return ["p"]
    # In timm and Hugging Face, `None` means that stochastic depth is off.
    has_drop_prob = is_rate(module, "drop_prob") or vars(module).get("drop_prob", 0) is None
    return ["drop_prob"] if has_drop_prob else []


def _rates_by_name(module: nn.Module, source: Source) -> list[str]:
    is_attention = "attention" in type(module).__name__.lower()
    if not is_attention and not is_dropout(module):
        return []
    pattern = _RATE_NAME if is_dropout(module) else re.compile(".*drop.*")

    def is_used(name: str) -> bool:
        # Many modules store rates that only their children use.
        return (name,) in source.reads or not source.is_known

    return [
        name
        for name in vars(module)
        if is_rate(module, name)
        and 0 <= value_of(module, name) <= 1
        and ((is_attention and name in _IN_ATTENTION) or (pattern.fullmatch(name) and is_used(name)))
    ]
