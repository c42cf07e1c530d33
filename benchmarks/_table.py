"""Printing results."""

from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    widths = [max(len(cells[column]) for cells in (header, *rows)) for column in range(len(header))]
    for cells in (header, [width * "-" for width in widths], *rows):
        print(f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |")
