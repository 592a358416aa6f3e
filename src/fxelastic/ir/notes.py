"""Notes of a partition: cuts that it did not take, and what the cuts that it took cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class UntakenCut:
    """A place where the graph could have been cut and was not.

    Attributes:
        value: Name of the value at which the cut was possible.
        block: Name of the block that holds it.
        reason: Why it was not taken, in words.
    """

    value: str
    block: str
    reason: str


@dataclass(frozen=True)
class SoftFusion:
    """A pair of operators that the inference framework fuses and that a boundary separates.

    Attributes:
        rule: Name of the fusion rule.
        producer: Node that computes the value at the boundary.
        consumer: Node that reads it in another block.
        reason: Why the pair was separated all the same.
    """

    rule: str
    producer: str
    consumer: str
    reason: str


@dataclass(frozen=True)
class OpenedModule:
    """A repeating module that was cut because it exceeds the cap by a little.

    Attributes:
        path: The module's path; ``path@n`` for its n-th further call.
        n_params: Its parameters.
        over: By how much it exceeds the cap, as a share of the cap.
        gamma: The smallest gamma that keeps it whole, rounded up to three digits.
    """

    path: str
    n_params: int
    over: float
    gamma: float


def opened_lines(opened: Sequence[OpenedModule], most: int = 3) -> list[str]:
    """A line for each gamma that keeps modules whole, the smallest first.

    Args:
        opened: The notes of a partition.
        most: How many modules a line names; the others are counted.
    """
    by_gamma: dict[float, list[OpenedModule]] = {}
    for note in sorted(opened, key=lambda note: note.gamma):
        by_gamma.setdefault(note.gamma, []).append(note)
    lines = []
    for gamma, notes in by_gamma.items():
        names = [note.path for note in notes]
        rest = len(names) - most
        shown = ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
        verb, over = ("is", "it") if len(names) == 1 else ("are", "them")
        share = f"{100 * max(note.over for note in notes):.2g} %"
        lines.append(
            f"{shown} {verb} cut, {share} over the cap: gamma={gamma:g} keeps {over} whole"
        )
    return lines
