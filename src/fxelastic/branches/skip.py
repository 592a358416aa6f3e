"""Skipping a block: its output is its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fxelastic.branches.interval import Interval, NoBranchError, intervals
from fxelastic.branches.propagation import is_feature, same_kind
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.partition import Partition

KIND = "skip"


@dataclass(frozen=True)
class Skip:
    """An identity for each block whose output has the shape and dtype of its input.

    Source: SkipNet-style skipping, as a branch of the search space.
    """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the identities.

        Args:
            partition: The partition to make them for.
            seed: Not used, since nothing here is random.

        Yields:
            A branch, or the reason why there is none, for each basic and oversize block.
        """
        for interval in intervals(partition, KIND):
            yield interval.attempt(_identity)


def _identity(interval: Interval) -> Branch:
    operand, result = interval.ends()
    if not same_kind(operand, result):
        raise NoBranchError("input and output differ in shape or dtype")
    if not is_feature(result):
        raise NoBranchError("input and output are indices or flags")
    return Branch(interval.spec(0, 0), nn.Identity(), interval.inputs, interval.outputs)
