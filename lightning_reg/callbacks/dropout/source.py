"""Dropout that only the source of `forward` shows: calls of functions, and rates read from children."""

import ast
from collections import deque
from collections.abc import Iterator
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from lightning_reg.callbacks.dropout.dataflow import Frame, Value, plain_function, tree_of

# The argument with the rate of each function: name, position, default.
_RATE_OF: dict[Any, tuple[str, int, float]] = {
    functional.scaled_dot_product_attention: ("dropout_p", 4, 0.0),
    functional.multi_head_attention_forward: ("dropout_p", 10, 0.0),
    torch.dropout: ("p", 1, 0.5),
    torch.alpha_dropout: ("p", 1, 0.5),
    torch.feature_dropout: ("p", 1, 0.5),
    functional.dropout: ("p", 1, 0.5),
    functional.dropout1d: ("p", 1, 0.5),
    functional.dropout2d: ("p", 1, 0.5),
    functional.dropout3d: ("p", 1, 0.5),
    functional.alpha_dropout: ("p", 1, 0.5),
    functional.feature_alpha_dropout: ("p", 1, 0.5),
    nn.Dropout: ("p", 0, 0.5),  # a module built in every call
    nn.Dropout1d: ("p", 0, 0.5),
    nn.Dropout2d: ("p", 0, 0.5),
    nn.Dropout3d: ("p", 0, 0.5),
    nn.AlphaDropout: ("p", 0, 0.5),
    nn.FeatureAlphaDropout: ("p", 0, 0.5),
}
_OTHERS_CODE = ("torch.", "lightning.", "pytorch_lightning.", "torchmetrics.")
_MOST_FUNCTIONS = 300
_RATES_OF_CHILDREN = ("p", "drop_prob", "dropout")


class FunctionalDropout(NamedTuple):
    """A call that drops."""

    where: str
    rate: float | None
    """The rate, if it is a number in the code."""
    attribute: str | None
    """The attribute of `self` that is the rate, if any; dotted for an attribute of an object that `self` holds."""


class Source(NamedTuple):
    """The dropout in the methods of a class, and in all methods and functions that they call."""

    is_known: bool
    """Whether the source is available."""
    calls: tuple[FunctionalDropout, ...] = ()
    reads: frozenset[tuple[str, ...]] = frozenset()
    """All paths from `self` that are read."""
    children_methods: frozenset[tuple[str, ...]] = frozenset()
    """Paths of methods that are called on objects of `self`."""
    asks_training: bool = False
    """Whether `self.training` controls anything besides dropout."""


def source_of(module: nn.Module, *steps: str) -> Source:
    """Read the source of `forward` and of the methods `steps`; torch's own modules are not read."""
    return _source_of(type(module), ("forward", *steps))  # type: ignore[arg-type]  # torch's `__hash__` has no types


def steps_of_parts(module: nn.Module, *steps: str) -> dict[nn.Module, tuple[str, ...]]:
    """Return the methods called besides `forward` for each module within: `steps` of `module`, and calls by parents."""
    found: dict[nn.Module, tuple[str, ...]] = {module: steps}
    for part in module.modules():
        for path in sorted(source_of(part, *found.get(part, ())).children_methods):
            child = child_at(part, path[:-1])
            if child is not None and path[-1] not in found.get(child, ()):
                found[child] = (*found.get(child, ()), path[-1])
    return found


def children_whose_rate_is_read(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children whose rate `module` reads itself as `self.<child>.p`, as fused attention does."""
    for path in sorted(source_of(module).reads):
        child = child_at(module, path[:-1]) if len(path) > 1 and path[-1] in _RATES_OF_CHILDREN else None
        if child is not None:
            yield child


def child_at(module: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """Return the module at `path` within `module`, but not `module` itself."""
    part: nn.Module | None = module
    for name in path:
        part = None if part is None else part._modules.get(name)  # noqa: SLF001  # getattr would run properties
    return part if path else None


@cache
def _source_of(kind: type, names: tuple[str, ...]) -> Source:
    if kind.__module__.startswith("torch."):
        return Source(is_known=False)
    reader = _Reader(kind)
    for name in names:
        function = plain_function(getattr(kind, name, None))
        if function is not None and not _is_others(function):
            reader.read(Frame(function, _bound_to_self(function)))
    return reader.source()


class _Reader:
    """Follows calls from method to method of one class, and into functions."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._frames: deque[Frame] = deque()
        self._seen: set[tuple[FunctionType, frozenset[tuple[str, frozenset[Value]]]]] = set()
        self._read_frames: list[Frame] = []
        self._calls: dict[str, FunctionalDropout] = {}
        self._drops: set[ast.AST] = set()
        self._reads: set[tuple[str, ...]] = set()
        self._children_methods: set[tuple[str, ...]] = set()

    def read(self, frame: Frame) -> None:
        self._add(frame)
        while self._frames:
            self._read(self._frames.popleft())

    def source(self) -> Source:
        return Source(
            any(tree_of(frame.function) is not None for frame in self._read_frames),
            tuple(self._calls.values()),
            frozenset(self._reads),
            frozenset(self._children_methods),
            any(self._asks_training(frame) for frame in self._read_frames),
        )

    def _add(self, frame: Frame) -> None:
        key = (frame.function, frozenset(frame.bindings.items()))
        if key not in self._seen and len(self._seen) < _MOST_FUNCTIONS and not _is_others(frame.function):
            self._seen.add(key)
            self._frames.append(frame)

    def _read(self, frame: Frame) -> None:
        self._read_frames.append(frame)
        for node in ast.walk(frame.tree):
            if isinstance(node, ast.Call):
                self._read_call(frame, node)
            elif isinstance(node, ast.Attribute):
                self._reads |= _paths(frame, node)

    def _asks_training(self, frame: Frame) -> bool:
        """Tell whether `self.training` controls code that does not drop."""
        nodes = list(ast.walk(frame.tree))
        rates = {tuple(call.attribute.split(".")) for call in self._calls.values() if call.attribute}
        drops = {
            node
            for node in nodes
            if node in self._drops or (isinstance(node, ast.expr) and not rates.isdisjoint(_paths(frame, node)))
        }
        about_dropout: set[ast.AST] = set()
        for node in nodes:
            if isinstance(node, (ast.If, ast.IfExp, ast.Call)) and not drops.isdisjoint(ast.walk(node)):
                about_dropout.update(ast.walk(node) if isinstance(node, ast.Call) else ast.walk(node.test))
        return any(
            isinstance(node, ast.Attribute) and node not in about_dropout and ("training",) in _paths(frame, node)
            for node in nodes
        )

    def _read_call(self, frame: Frame, call: ast.Call) -> None:
        """Follow a call, or note that it drops."""
        called = frame.resolve(call.func)
        takes = _RATE_OF.get(called) if callable(called) and _is_hashable(called) else None
        if takes is not None:
            self._record(frame, call, _argument(call, *takes))
            return
        method = self._method(frame, call)
        function = method or (None if isinstance(called, type) else plain_function(called))
        if function is None:
            # The callee can't be read: other attention kernels, children that take the rate.
            for word in call.keywords:
                if word.arg and "drop" in word.arg and _paths(frame, word.value):
                    self._record(frame, call, word.value)
            return
        inner = frame.bind(call, function, first=() if method else None)
        # If neither `self` nor a part of it is an argument, the call drops nothing of this module.
        if method or any(isinstance(value, tuple) for values in inner.bindings.values() for value in values):
            self._add(inner)

    def _method(self, frame: Frame, call: ast.Call) -> FunctionType | None:
        match call.func:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                order = self._kind.__mro__
                own = [k for k in order if plain_function(vars(k).get(frame.function.__name__)) is frame.function]
                for ancestor in order[order.index(own[0]) + 1 :] if own else ():
                    if name in vars(ancestor):
                        return plain_function(vars(ancestor)[name])
            case ast.Attribute():
                for path in _paths(frame, call.func):
                    if len(path) == 1:
                        static = isinstance(vars(self._kind).get(path[0]), (staticmethod, classmethod))
                        return None if static else plain_function(getattr(self._kind, path[0], None))
                    self._children_methods.add(path)
        return None

    def _record(self, frame: Frame, call: ast.Call, rate: ast.expr) -> None:
        values = frame.values(rate)
        where = f"{frame.function.__qualname__}: {ast.unparse(call)}"
        paths = sorted(path for path in values if isinstance(path, tuple) and path)
        for path in paths:
            attribute = ".".join(path)
            self._calls.setdefault(attribute, FunctionalDropout(where, None, attribute))
        numbers = [value for value in values if isinstance(value, float)]
        if not paths and (not numbers or max(numbers) > 0):
            self._calls.setdefault(where, FunctionalDropout(where, max(numbers, default=None), None))
        if paths or not numbers or max(numbers) > 0:
            self._drops.add(call)


def _paths(frame: Frame, node: ast.expr) -> set[tuple[str, ...]]:
    return {path for path in frame.values(node) if isinstance(path, tuple) and path}


def _argument(call: ast.Call, name: str, position: int, default: float) -> ast.expr:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if len(call.args) > position else ast.Constant(default)


def _bound_to_self(function: FunctionType) -> dict[str, frozenset[Value]]:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return {name: frozenset([()]) if index == 0 else frozenset() for index, name in enumerate(names)}


def _is_others(function: FunctionType) -> bool:
    return f"{function.__module__}.".startswith(_OTHERS_CODE)


def _is_hashable(value: object) -> bool:
    return getattr(type(value), "__hash__", None) is not None
