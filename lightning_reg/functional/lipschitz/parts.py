r"""Values that are parts of one value: several parts together change no more than the value.

Examples are the chunks of a value, its largest and its smallest entries, or :math:`\max(x, 0)` and
:math:`\max(-x, 0)`. If each part were bounded alone, a pair would count the value twice. Sorting activations
(GroupSort, MaxMin) are written with such parts.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_reg.functional.lipschitz.memory import has_no_entry_twice, memory
from lightning_reg.functional.lipschitz.rounding import times


@dataclass(frozen=True, eq=False)
class Part:
    """A record that a value depends on only one part of another value."""

    whole: tuple[object, ...]
    """The bounds of the other value, or of several values together. They are compared by identity."""
    bound: float
    """The joint bound of these values."""
    kind: Hashable
    """How the value was divided. Parts of the same kind are disjoint if their places differ."""
    place: Tensor | str
    """Which part it is: a name, or a tensor that views the entries."""
    factor: float = 1.0
    """The Lipschitz constant from the part to the value."""

    def times(self, factor: float) -> "Part":
        """Return the part after a function with the Lipschitz constant `factor`."""
        return replace(self, factor=self.factor * factor)

    def is_like(self, other: "Part") -> bool:
        """Return whether both are parts of the same value and of the same kind."""
        pairs = itertools.zip_longest(self.whole, other.whole)
        return self.kind == other.kind and all(first is second for first, second in pairs)


def entries(whole: object, bound: float, before: Tensor, after: Tensor) -> tuple[Part, ...]:
    """Return `after` as a part of `before` if it is a view of entries of `before`, and nothing otherwise."""
    is_view = memory(before) == memory(after) and before.dtype == after.dtype and after.layout == torch.strided
    if not is_view or not (has_no_entry_twice(before) and has_no_entry_twice(after)):
        return ()
    return (Part((whole,), bound, "entries", after),)


def joint(parts: Sequence[Sequence[Part]]) -> float | None:
    """Return the joint bound of several values, if they are disjoint parts of the same value; None otherwise.

    `parts` holds the known parts of each value.
    """
    for first in parts[0] if parts else ():
        others = [next((each for each in known if each.is_like(first)), None) for known in parts]
        found = [each for each in others if each is not None]
        if len(found) == len(parts) and _are_apart([each.place for each in found]):
            return times(first.bound, max(each.factor for each in found))
    return None


def _are_apart(places: Sequence[Tensor | str]) -> bool:
    views = [_offsets(place) for place in places if isinstance(place, Tensor)]
    if not views:
        return len(set(places)) == len(places)
    together = torch.cat(views)
    return len(set(together.tolist())) == len(together)


def _offsets(view: Tensor) -> Tensor:
    """Return the places of the entries in memory."""
    offsets = torch.tensor(view.storage_offset())
    for size, stride in zip(view.shape, view.stride(), strict=True):
        offsets = offsets[..., None] + stride * torch.arange(size)
    return offsets.flatten()
