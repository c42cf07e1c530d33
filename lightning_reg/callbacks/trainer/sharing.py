"""Which callbacks may change the same weight after a step: only callbacks that do not undo each other's changes."""

from typing import Literal

Change = Literal["zeros", "shrinks", "norms", "operator", "moves"]
"""The change of a weight right after an optimizer step, in the order of `Turn`.

- `"zeros"`: entries become zero, and the others stay.
- `"shrinks"`: units, or the whole weight, are multiplied by factors of at most 1, to bound norms from above.
- `"norms"`: they are multiplied by any positive factors, to set norms.
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
    """Tell whether two callbacks with these changes may act on the same weight."""
    return frozenset((one, other)) in _TOGETHER
