"""One algorithm that chooses among things with names, and says which part of a `Select` has no effect."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Generic, NamedTuple, TypeVar

from torch import nn

from lightning_reg import _checks
from lightning_reg.selection.select import Select


@dataclass(frozen=True, eq=False, kw_only=True)
class Named:
    """A thing, once, with all its names."""

    modules: list[nn.Module] = field(default_factory=list)
    """Those whose type counts."""
    names: list[str] = field(default_factory=list)
    of_type: ClassVar[str] = "a"
    """How it goes with the type of its module, in messages: it is "a" Linear, or "in a" Linear."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    def matches(self, pattern: str) -> bool:
        """Return whether a glob matches one of its names."""
        return any(fnmatchcase(name, pattern) for name in self.names)

    def misfit(self, select: Select) -> str:
        """Return why `select` does not take it, whatever its names; "" if it does."""
        types = tuple(select.module_types)
        if not types or any(isinstance(module, types) for module in self.modules):
            return ""
        return f"{self.of_type} {type(self.modules[0]).__name__}, no module type of `select`"

    def remedy(self, select: Select, candidates: Iterable["Named"]) -> str:  # noqa: ARG002  # for one that knows more
        """Return which other `select` takes this misfit among `candidates`, as a sentence after a space, or ""."""
        return ""


NamedT = TypeVar("NamedT", bound=Named)


@dataclass(frozen=True)
class Choice(Generic[NamedT]):
    """Outcome of a choice: the things chosen, and for the names of the others why not."""

    chosen: tuple[NamedT, ...]
    left_out: Mapping[str, str]


class Words(NamedTuple):
    """What messages call the things that are chosen among."""

    one: str
    named: str  # what patterns match
    things: str
    has: str  # a module type "has" a weight, but "is" a module


def choose(candidates: Sequence[NamedT], select: Select, words: Words, others: Sequence[Named] = ()) -> Choice[NamedT]:
    """Choose among `candidates`.

    Args:
        candidates: What can be chosen.
        select: The choice. A thing with several names is chosen if one of them is, and excluded if one of them is.
        words: What messages call the candidates.
        others: What can't be chosen, but has names that a pattern may match by mistake.

    Returns:
        The candidates chosen, and for each other one the reason.

    Raises:
        ValueError: If nothing is chosen, or a pattern or module type matches no candidate.

    """
    # A part of `select` that has no effect would be a typing error that trains on silently.
    _check_types(candidates, select, words)
    for pattern in (*select.include, *select.exclude) if candidates else ():
        _check_pattern(pattern, candidates, select, words, others)
    reasons = {candidate: _reason(candidate, select) for candidate in candidates}
    chosen = tuple(candidate for candidate, reason in reasons.items() if not reason)
    left_out = {candidate.name: reason for candidate, reason in reasons.items() if reason}
    if not chosen:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:5])
        msg = (
            f"`select` must choose at least one {words.one}, but {select} chooses none of {len(candidates)}."
            f" {first or f'The module has no {words.things}'}."
        )
        raise ValueError(msg)
    return Choice(chosen, left_out)


def _reason(candidate: Named, select: Select) -> str:
    """Return why `candidate` is not chosen; "" if it is."""
    if not any(map(candidate.matches, select.include)):
        return "matches no pattern of `select`"
    excluded = [pattern for pattern in select.exclude if candidate.matches(pattern)]
    return f"excluded by {excluded[0]!r}" if excluded else candidate.misfit(select)


def _check_types(candidates: Sequence[Named], select: Select, words: Words) -> None:
    modules = [module for candidate in candidates for module in candidate.modules]
    for module_type in select.module_types:
        if not any(isinstance(module, module_type) for module in modules):
            present = ", ".join(sorted({type(module).__name__ for module in modules}))
            msg = (
                f"`select` module type {module_type.__name__} {words.has} no {words.one} in this model."
                f" Types there: {present or 'none'}."
            )
            raise ValueError(msg)


def _check_pattern(
    pattern: str, candidates: Sequence[Named], select: Select, words: Words, others: Sequence[Named]
) -> None:
    matching = [candidate for candidate in candidates if candidate.matches(pattern)]
    if not matching:
        count = sum(other.matches(pattern) for other in others)
        found = f"{count} {words.things}, but no" if count else "no"
        nearest = _checks.nearest(pattern, [name for candidate in candidates for name in candidate.names])
        msg = f"`select` pattern {pattern!r} matches {found} {words.named}. Nearest names: {nearest}."
        raise ValueError(msg)
    if pattern in select.include and all(candidate.misfit(select) for candidate in matching):
        remedies = filter(None, (candidate.remedy(select, candidates) for candidate in matching))
        msg = (
            f"`select` pattern {pattern!r} matches {len(matching)} {words.things}, but none of the right kind."
            f" {matching[0].name}: {matching[0].misfit(select)}.{next(remedies, '')}"
        )
        raise ValueError(msg)
