"""The possible values of an expression in the source of a method: attributes of `self`, and numbers."""

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

Value = tuple[str, ...] | float
"""A path from `self`, such as `("config", "dropout")`, with `()` for `self`; or a number."""

NOTHING: frozenset[Value] = frozenset()
_DEPTH = 8


@cache
def tree_of(function: Callable[..., Any]) -> ast.AST | None:
    """Return the parsed source; `None` if the function was not defined in a file."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError, TypeError):
        return None


class Frame:
    """A function with the known values of its arguments.

    Args:
        function: A Python function without its decorators.
        bindings: All possible values for names of arguments.

    """

    def __init__(self, function: FunctionType, bindings: Mapping[str, frozenset[Value]]) -> None:
        self.function = function
        self.bindings = dict(bindings)
        self.tree = tree_of(function) or ast.Pass()
        self._assigned: dict[str, list[ast.expr | None]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
                self._assign(node.target, node.value)
            elif isinstance(node, (ast.AugAssign, ast.For, ast.comprehension)):
                self._assign(node.target, None)

    def values(self, node: ast.expr, depth: int = _DEPTH) -> frozenset[Value]:
        """Return all possible values of `node`; nothing if they are unknown."""
        match node:
            case _ if not depth:
                return NOTHING
            case ast.Constant(value=number):
                return _number(number)
            case ast.Name(id=name):
                return self._values_of_name(name, depth)
            case ast.Attribute(value=value, attr=name):
                return self._attribute(value, name, depth)
            case ast.IfExp(body=body, orelse=orelse):  # `self.rate if self.training else 0.0` is also the rate
                return self.values(body, depth - 1) | self.values(orelse, depth - 1)
            case ast.BoolOp(values=values) | ast.Call(func=ast.Name(id="float"), args=values):
                return NOTHING.union(*(self.values(value, depth - 1) for value in values))
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str() as name), *_]):
                return self._attribute(value, name, depth)
        return NOTHING

    def resolve(self, node: ast.expr) -> object:
        """Return the global or enclosing object of a dotted name; `None` if it is not found."""
        match node:
            case ast.Name(id=name) if name in self._assigned or name in self.bindings:
                return None
            case ast.Name(id=name):
                enclosing = dict(zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=True))
                try:
                    return enclosing[name].cell_contents
                except (KeyError, ValueError):  # not there, or not yet assigned
                    return self.function.__globals__.get(name, getattr(builtins, name, None))
            case ast.Attribute(value=value, attr=name):
                owner = self.resolve(value)
                if isinstance(owner, ModuleType):  # it may import its parts on first use
                    return getattr(owner, name, None)
                return None if owner is None else inspect.getattr_static(owner, name, None)
        return None

    def bind(self, call: ast.Call, function: FunctionType, *, first: Value | None = None) -> "Frame":
        """Return the frame of `function` in `call`; `first` is the object to which a method is bound."""
        names = list(function.__code__.co_varnames[: function.__code__.co_argcount])
        only_by_name = function.__code__.co_kwonlyargcount
        known = {*names, *function.__code__.co_varnames[len(names) : len(names) + only_by_name]}
        bindings = dict.fromkeys(known, NOTHING)
        for parameter in inspect.signature(function).parameters.values():
            bindings[parameter.name] = _number(parameter.default)
        if first is not None and names:
            bindings[names.pop(0)] = frozenset([first])
        for name, argument in zip(names, call.args, strict=False):
            if isinstance(argument, ast.Starred):
                break
            bindings[name] = self.values(argument)
        bindings.update((word.arg, self.values(word.value)) for word in call.keywords if word.arg in known)
        return Frame(function, bindings)

    def _assign(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for index, part in enumerate(target.elts):
                self._assign(part, value.elts[index] if same and isinstance(value, (ast.Tuple, ast.List)) else None)
        elif isinstance(target, ast.Name):
            self._assigned.setdefault(target.id, []).append(value)

    def _values_of_name(self, name: str, depth: int) -> frozenset[Value]:
        assigned = [self.values(value, depth - 1) for value in self._assigned.get(name, ()) if value is not None]
        if assigned or name in self.bindings:
            return self.bindings.get(name, NOTHING).union(*assigned)
        return _number(self.resolve(ast.Name(name)))

    def _attribute(self, value: ast.expr, name: str, depth: int) -> frozenset[Value]:
        owners = self.values(value, depth - 1)
        return frozenset((*owner, name) for owner in owners if isinstance(owner, tuple))


def _number(value: object) -> frozenset[Value]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return frozenset([float(value)])
    return NOTHING


def plain_function(value: object) -> FunctionType | None:
    """Return the Python function behind decorators; `None` for other objects."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    unwrapped = inspect.unwrap(value) if callable(value) else None
    return unwrapped if isinstance(unwrapped, FunctionType) else None
