"""Skipping a block: its output is its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from fxelastic.branches.caches import with_empty_caches
from fxelastic.branches.interval import Interval, NoBranchError, intervals
from fxelastic.branches.propagation import is_feature, same_kind
from fxelastic.branches.trainable import Trainable
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.graph_modules import MovableGraphModule
from fxelastic.ir.partition import Partition

KIND = "skip"


@dataclass(frozen=True)
class Skip:
    """An identity for each block whose output has the shape and dtype of its input.

    If the block extends caches, its past and present have no elements.

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
    if not interval.caches:
        return Branch(interval.spec(0, 0), nn.Identity(), interval.inputs, interval.outputs)
    return _without_caches(interval)


def _without_caches(interval: Interval) -> Branch:
    """An identity that returns caches without elements."""
    (read,) = interval.inputs
    graph = fx.Graph()
    given = graph.placeholder(read)
    given.meta["val"] = interval.partition.value(read)
    graph.output(given)
    module = MovableGraphModule(nn.Module(), graph, class_name="Skip").eval()
    outputs = interval.outputs[: len(interval.outputs) - len(interval.caches)]
    copied = Trainable(module, (read,), (), outputs)
    copied, cache = with_empty_caches(interval, copied, interval.caches)
    return interval.branch(copied, cache=cache)
