"""Which callbacks may change one weight after the same step: those of which none undoes what another has reached."""

from typing import Literal

Change = Literal["zeros", "shrinks", "norms", "operator", "moves"]
"""What is done to a weight right after an optimizer step, in the order of `Turn`.

- `"zeros"`: entries become zero, and the others stay.
- `"shrinks"`: units, or the whole, are multiplied by factors of at most 1: norms are bounded from above.
- `"norms"`: they are multiplied by any positive factors, so that norms are what they are to be.
- `"operator"`: the proximal operator of a penalty that keeps zeros and signs.
- `"moves"`: anything else.
"""

_TOGETHER: set[frozenset[Change]] = {
    frozenset({"zeros"}),
    frozenset({"zeros", "shrinks"}),
    frozenset({"zeros", "norms"}),
    frozenset({"zeros", "operator"}),
    frozenset({"shrinks"}),
    frozenset({"shrinks", "operator"}),
    frozenset({"norms", "operator"}),
}


def may_share(one: Change, other: Change) -> bool:
    """Tell whether two callbacks that change weights in these ways may have the same weight."""
    return frozenset((one, other)) in _TOGETHER
