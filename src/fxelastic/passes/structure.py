"""Find repetition in code without modules, from the sequence of operators alone."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_PERIOD = 64

#: How the names of such repetitions begin; no module path has a colon.
STRUCTURAL = "unit:"


def structural_units(kinds: Sequence[str]) -> list[str | None]:
    """Divide a sequence into the repetitions of its most covering pattern.

    Args:
        kinds: What each element is; equal strings mean equal structure.

    Returns:
        For each element the name of the repetition it belongs to (``unit:0``, ``unit:1``, …), or
        None where nothing repeats.
    """
    homes: list[str | None] = [None] * len(kinds)
    count = 0
    start = 0
    while start < len(kinds):
        period, repeats = _best_period(kinds, start)
        if repeats < 2:
            start += 1
            continue
        for r in range(repeats):
            for i in range(period):
                homes[start + r * period + i] = f"{STRUCTURAL}{count + r}"
        count += repeats
        start += period * repeats
    return homes


def _best_period(kinds: Sequence[str], start: int) -> tuple[int, int]:
    """The period that covers most from ``start`` on, the shortest of equals; and its repeats."""
    best, best_cover, best_repeats = 1, 0, 1
    for period in range(1, min(_MAX_PERIOD, (len(kinds) - start) // 2) + 1):
        repeats = 1
        pattern = kinds[start : start + period]
        while kinds[start + repeats * period : start + (repeats + 1) * period] == pattern:
            repeats += 1
        cover = repeats * period
        if repeats >= 2 and cover > best_cover:
            best, best_cover, best_repeats = period, cover, repeats
    return best, best_repeats
