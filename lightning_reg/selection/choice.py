"""One algorithm that chooses among named things, and raises when a part of a `Select` has no effect."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Generic, NamedTuple, TypeVar

from torch import nn

from lightning_reg import _checks
from lightning_reg.selection.select import Select


@dataclass(frozen=True, eq=False, kw_only=True)
class Named:
    """One thing with all its names."""

    modules: list[nn.Module] = field(default_factory=list)
    """The modules whose types `Select.module_types` is compared with."""
    names: list[str] = field(default_factory=list)
    of_type: ClassVar[str] = "a"
    """The words before the type of its module in messages: "a" Linear, or "in a" Linear."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    def matches(self, pattern: str) -> bool:
        """Return whether a glob matches one of its names."""
        return any(fnmatchcase(name, pattern) for name in self.names)

    def misfit(self, select: Select) -> str:
        """Return why `select` leaves it out for a reason other than its names; "" if it does not."""
        types = tuple(select.module_types)
        if not types or any(isinstance(module, types) for module in self.modules):
            return ""
        return f"{self.of_type} {type(self.modules[0]).__name__}, not in `module_types` of `select`"

    def remedy(self, select: Select, candidates: Iterable["Named"]) -> str:  # noqa: ARG002  # for one that knows more
        """Return a sentence, after a space, that names another `select` which takes this misfit; or ""."""
        return ""


NamedT = TypeVar("NamedT", bound=Named)


@dataclass(frozen=True)
class Choice(Generic[NamedT]):
    """Outcome of a choice: the things chosen, and the reason for each name left out."""

    chosen: tuple[NamedT, ...]
    left_out: Mapping[str, str]


class Words(NamedTuple):
    """The words of messages for the candidates."""

    one: str
    named: str  # what patterns match
    things: str
    has: str  # a module type "has" a weight, but "is" a module


def choose(candidates: Sequence[NamedT], select: Select, words: Words, others: Sequence[Named] = ()) -> Choice[NamedT]:
    """Choose among `candidates`.

    Args:
        candidates: The things to choose among.
        select: The choice. A thing with several names is included if one name matches, and excluded if one name
            matches.
        words: The words of messages for the candidates.
        others: Things that cannot be chosen, but whose names a pattern may match by mistake.

    Returns:
        The candidates chosen, and the reason for each one left out.

    Raises:
        ValueError: If nothing is chosen, or a pattern or module type matches no candidate.

    """
    # A part of `select` without effect is probably a typing error. Training would go on silently.
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
