"""Glue: joins streams, or hands one operator's results different ways, without parameters."""

from __future__ import annotations

import operator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block
from fxelastic.ir.verify_layout import Layout
from fxelastic.ir.verify_weights import Weights

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


def check_glue(
    partition: Partition, layout: Layout, stream: AbstractSet[fx.Node], weights: Weights
) -> None:
    """Check that glue has no parameters, or that a single operator leaves no other choice.

    Such an operator reads several inputs, or several of its results are read elsewhere. Its
    block holds no other operator of the stream.

    Args:
        partition: The partition; its boundaries are known to be good.
        layout: Where every operator stands.
        stream: The values that belong to the data stream.
        weights: The parameters that each block's operators read.

    Raises:
        PartitionError: A glue block has parameters that another kind of block could hold.
    """
    for index, block in enumerate(partition.blocks):
        readers = weights.readers[index]
        if block.kind != "glue" or not readers:
            continue
        inputs = {layout.nodes[name] for name in block.inputs}
        joins = len(inputs.intersection(readers[0].all_input_nodes)) > 1
        splits = len(block.outputs) > 1 and split_operator(block, layout) is readers[0]
        others = [
            name
            for name in block.nodes
            if layout.nodes[name] in stream and unpacked(layout.nodes[name]) is not readers[0]
        ]
        if len(readers) > 1 or others or not (joins or splits) or not block.reason:
            raise PartitionError(
                f"glue block {block.name!r} has parameters",
                expected="no parameters, or one single operator that joins several inputs or "
                "whose results go different ways, and a reason that says so",
                got=f"parameters of {', '.join(repr(node.name) for node in readers)}; "
                f"{len(others)} other operators, {len(block.inputs)} inputs, "
                f"{len(block.outputs)} outputs, reason {block.reason!r}",
            )


def split_operator(block: Block, layout: Layout) -> fx.Node | None:
    """The operator of which all of the block's outputs are results, if there is one."""
    sources = [unpacked(layout.nodes[name]) for name in block.outputs]
    return sources[0] if len(set(sources)) == 1 and sources[0].name not in block.outputs else None


def unpacked(node: fx.Node) -> fx.Node:
    """The operator whose tuple of results a value was taken from, or the value's own operator."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
