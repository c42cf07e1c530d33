"""The rules of operations: which rule bounds which operation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn import functional

from lightning_reg.functional.lipschitz.nested import replaced
from lightning_reg.functional.lipschitz.traced_tensor import is_method
from lightning_reg.functional.lipschitz.value import NoBoundError, Traced

# Maps `Operation` and its arguments to the bound of the result, to the slopes of a function that works entry by entry,
# or to a factor for the only argument that depends on the input. Arguments that depend on the input are `Traced`.
Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule")


@dataclass(frozen=True)
class UserRule:
    """A rule that gets the arguments of the operation, and returns a factor for all of them together."""

    function: Callable[..., Any]


class Book(NamedTuple):
    """Rules that answer one question."""

    modules: dict[type[nn.Module], Any]
    functions: dict[Callable[..., Any], Any]
    methods: dict[str, Any]


# How much a result changes.
BOUNDS = Book({}, {}, {})
# How large it gets; the rules get the bound of the result as their second argument.
EXTENTS = Book({}, {}, {})
# What it is, as a formula of another value; the rules of what returns several tensors may answer for each.
FORMS = Book({}, {}, {})
# Not rules: where the slope of a function of each entry stops to rise or to fall.
TURNS = Book({}, {}, {})
_NAMESPACES = (torch, functional, torch.special)


def for_modules(*types: type[nn.Module], book: Book = BOUNDS) -> Callable[[AnyRule], AnyRule]:
    """Make a function the rule of modules."""

    def register(rule: AnyRule) -> AnyRule:
        book.modules.update(dict.fromkeys(types, rule))
        return rule

    return register


def for_functions(names: str, book: Book = BOUNDS) -> Callable[[AnyRule], AnyRule]:
    """Make a function the rule of the functions, operators and methods of these names, and of their in-place forms."""

    def register(rule: AnyRule) -> AnyRule:
        for name in names.split():
            for variant in (name, f"{name}_", f"i{name}"):
                add_function(variant, rule, book)
        return rule

    return register


def add_function(name: str, rule: Any, book: Book = BOUNDS) -> None:
    """Make `rule` the rule of every function of torch, operator, attribute and method called `name`."""
    for space in _NAMESPACES:
        function = getattr(space, name, None)
        if callable(function) and not isinstance(function, type):
            book.functions[function] = rule
    if hasattr(torch.Tensor, name) or hasattr(torch.Tensor, f"__{name}__"):
        book.methods[name] = rule


def register(target: type[nn.Module] | Callable[..., Any], rule: UserRule) -> None:
    """Make `rule` the rule of a module type, a function, or a method of tensors."""
    if isinstance(target, type):
        BOUNDS.modules[target] = rule
        return
    BOUNDS.functions[target] = rule
    name = getattr(target, "__name__", "")
    # The same under all its names.
    if any(getattr(space, name, None) is target for space in (torch, torch.Tensor)):
        BOUNDS.methods[name] = rule


def module_rule(module: nn.Module, book: Book = BOUNDS) -> Any:
    """Return the rule of the nearest ancestor that computes the same."""
    for ancestor in type(module).__mro__:
        if ancestor in book.modules:
            return book.modules[ancestor] if _has_forward_of(ancestor, module) else None
    return None


def _has_forward_of(ancestor: type[nn.Module], module: nn.Module) -> bool:
    """Tell whether a module inherits `forward` and the methods that it calls, like `_conv_forward`, from `ancestor`."""
    code = getattr(ancestor.forward, "__code__", None)
    called = [name for name in (code.co_names if code else ()) if callable(getattr(ancestor, name, None))]
    return all(
        name not in vars(module) and getattr(type(module), name) is getattr(ancestor, name)
        for name in ("forward", *called)
    )


def function_rule(function: Callable[..., Any], name: str, book: Book = BOUNDS) -> Any:
    """Return the rule of a function; methods and attributes of tensors are found by name."""
    return book.functions.get(function, book.methods.get(name) if is_method(function) else None)


def own_functions() -> list[FunctionType]:
    """Return the Python functions that users registered."""
    return [f for f, rule in BOUNDS.functions.items() if isinstance(rule, UserRule) and isinstance(f, FunctionType)]


def without_bound(reason: str) -> Rule:
    """Return a rule that says why there is no bound."""

    def rule(*_: Any, **__: Any) -> Any:
        raise NoBoundError(reason)

    return rule


def for_all(types: Iterable[type[nn.Module]], names: str, rule: Any, book: Book = BOUNDS) -> None:
    """Make `rule` the rule of modules and of functions."""
    for_modules(*types, book=book)(rule)
    for_functions(names, book=book)(rule)


def for_function(function: Callable[..., Any], rule: Rule, book: Book = BOUNDS) -> None:
    """Make `rule` the rule of a single function."""
    book.functions[function] = rule


def plain(values: Any) -> Any:
    """Return arguments with plain tensors in place of `Traced` ones."""
    return replaced(values, Traced, lambda traced: traced.value)
