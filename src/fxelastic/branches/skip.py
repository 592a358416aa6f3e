"""Skipping a block: its output is its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fxelastic.branches.propagation import is_feature, same_kind
from fxelastic.ir.branch import Branch, Crossings, Skip
from fxelastic.ir.partition import Partition
from fxelastic.spec import BranchSpec, branch_id

KIND = "skip"


@dataclass(frozen=True)
class Identities:
    """An identity for each block whose output is of the shape and dtype of its input.

    Source: SkipNet-style skipping, as a branch of the search space.
    """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Skip]:
        """Make the identities.

        Args:
            partition: What to make them for.
            seed: Not used: nothing here is random.

        Yields:
            A branch or the reason why there is none, for each basic and oversize block.
        """
        crossings = Crossings(partition)
        values = {node.name: node.meta.get("val") for node in partition.graph.nodes}
        for i, block in enumerate(partition.blocks):
            if block.kind not in ("basic", "oversize"):
                continue
            outputs = crossings.outputs(i, i + 1)
            if block.input is None or len(outputs) != 1:
                yield Skip("the block has not one input and one output", KIND, i, i + 1)
            elif not same_kind(values[block.input], values[outputs[0]]):
                yield Skip("input and output differ in shape or dtype", KIND, i, i + 1)
            elif not is_feature(values[outputs[0]]):
                yield Skip("input and output are indices or flags", KIND, i, i + 1)
            else:
                spec = BranchSpec(branch_id(KIND, i, i + 1), KIND, i, i + 1, 0, 0)
                yield Branch(spec, nn.Identity(), (block.input,), outputs)
