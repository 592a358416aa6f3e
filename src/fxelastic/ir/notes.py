"""What a partition says about the cuts it did not take and the fusions it paid for."""

from __future__ import annotations

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
