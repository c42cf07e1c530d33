"""Figures of matplotlib, which is not a dependency."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure for a method `plot`, in inches.

    Raises:
        ImportError: If matplotlib is not installed.

    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "`plot` needs matplotlib. Install it: pip install matplotlib."
        raise ImportError(msg) from error
    return Figure(figsize=(width, height), layout="constrained")
