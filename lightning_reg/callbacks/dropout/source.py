"""What the source of `forward` tells about dropout that no module shows: functions, and rates read from children."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
)
_ATTENTION_RATE_POSITION = 4


class FunctionalDropout(NamedTuple):
    """A call of a dropout function."""

    where: str
    rate: float | None
    """The rate, if it is a number in the code."""
    attribute: str | None
    """The attribute of `self` that is the rate, if it is one."""


def functional_dropouts(module: nn.Module, *steps: str) -> list[tuple[nn.Module, FunctionalDropout]]:
    """Return the calls of dropout functions in `forward` and the methods `steps` of `module` and all within it."""
    return [
        (part, call)
        for part in module.modules()
        for function in _functions(part, "forward", *steps)
        for call in _calls(function)
        if call.rate is None or call.rate > 0
    ]


def children_whose_rate_is_read(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of which `module` reads `self.<child>.p` itself, as fused attention does."""
    for function in _functions(module, "forward"):
        for path in _rate_reads(function):
            child = module._modules.get(path)  # noqa: SLF001  # getattr would run properties
            if child is not None:
                yield child


def _functions(module: nn.Module, *names: str) -> Iterator[Callable[..., Any]]:
    if type(module).__module__.startswith("torch."):
        return
    for name in names:
        function = getattr(type(module), name, None)
        if inspect.isfunction(function) and not function.__module__.startswith(("torch.", "lightning.")):
            yield function


@cache
def _tree(function: Callable[..., Any]) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):  # defined in a prompt, or in no file at all
        return ast.Module(body=[], type_ignores=[])


@cache
def _calls(function: Callable[..., Any]) -> tuple[FunctionalDropout, ...]:
    found = []
    for node in ast.walk(_tree(function)):
        if not isinstance(node, ast.Call):
            continue
        called = _resolve(node.func, function)
        if called is functional.scaled_dot_product_attention:
            rate = _argument(node, "dropout_p", _ATTENTION_RATE_POSITION, default=0.0)
        elif any(called is item for item in _FUNCTIONS):
            rate = _argument(node, "p", 1, default=0.5)
        else:
            continue
        literal = float(rate.value) if isinstance(rate, ast.Constant) and isinstance(rate.value, (int, float)) else None
        attribute = _attribute_of_self(rate)
        if literal is not None or attribute is not None:
            where = f"{function.__qualname__}: {ast.unparse(node)}"
            found.append(FunctionalDropout(where, literal, attribute))
    return tuple(found)


@cache
def _rate_reads(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(
        child
        for node in ast.walk(_tree(function))
        if isinstance(node, ast.Attribute) and node.attr in ("p", "drop_prob")
        if (child := _attribute_of_self(node.value)) is not None
    )


def _argument(call: ast.Call, name: str, position: int, default: float) -> ast.expr:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if len(call.args) > position else ast.Constant(default)


def _attribute_of_self(node: ast.expr) -> str | None:
    # `self.rate if self.training else 0.0` is the rate, too.
    node = node.body if isinstance(node, ast.IfExp) else node
    is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if is_attribute and isinstance(node, ast.Attribute) else None


def _resolve(node: ast.expr, function: Callable[..., Any]) -> object:
    """Return what a dotted name in the code of `function` stands for; `None` if it is not found."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(node.value, function), node.attr, None)
    return None
