"""Format counts and tables for reports in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet


def engineering(count: int) -> str:
    """A count with three significant digits and a unit prefix: ``4.09 G``; ``-`` for 0."""
    if not count:
        return "-"
    for scale, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= scale:
            number = count / scale
            return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {prefix}"
    return str(count)


def aligned(rows: Sequence[Sequence[str]], right: AbstractSet[int] = frozenset()) -> list[str]:
    """Format rows as lines with aligned columns.

    Args:
        rows: Cells; the same number in each row.
        right: Indices of the right-aligned columns.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
