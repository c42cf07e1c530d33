"""The registry of rules: it maps operations to their rules."""

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

# Takes an `Operation` and its arguments. Returns the bound of the result, the slopes of an elementwise function, or a
# factor for the only argument that depends on the input. Arguments that depend on the input are `Traced`.
Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Callable[..., Any])


@dataclass(frozen=True)
class UserRule:
    """A user's rule. It takes the arguments of the operation, and returns one factor for all of them together."""

    function: Callable[..., Any]


class Book(NamedTuple):
    """Rules that answer one question."""

    modules: dict[type[nn.Module], Any]
    functions: dict[Callable[..., Any], Any]
    methods: dict[str, Any]


# Rules that bound the change of a result.
BOUNDS = Book({}, {}, {})
# Rules that bound the size of a result. They take the bound of its change as their second argument.
EXTENTS = Book({}, {}, {})
# Rules that recognize a result as a formula of another value. They may answer for each of several tensors.
FORMS = Book({}, {}, {})
# These are not rules. They are the places where the slope of an elementwise function stops rising or falling.
TURNS = Book({}, {}, {})
_NAMESPACES = (torch, functional, torch.special)


def for_modules(*types: type[nn.Module], book: Book = BOUNDS, settings: str = "") -> Callable[[AnyRule], AnyRule]:
    """Make a function the rule of modules, whose attributes called `settings` it takes as arguments."""

    def register(rule: AnyRule) -> AnyRule:
        def with_settings(op: Any, *args: Any, **kwargs: Any) -> Any:
            return rule(op, *args, **kwargs, **{name: getattr(op.module, name) for name in settings.split()})

        book.modules.update(dict.fromkeys(types, with_settings if settings else rule))
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
    # The function keeps its rule under all its names.
    if any(getattr(space, name, None) is target for space in (torch, torch.Tensor)):
        BOUNDS.methods[name] = rule


def module_rule(module: nn.Module, book: Book = BOUNDS) -> Any:
    """Return the rule of the nearest ancestor that has one; None if the module overrides the computation."""
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
    """Return a rule that raises `NoBoundError` with the reason."""

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
