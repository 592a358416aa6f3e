"""Prove a partition: derive every invariant from the graph again and compare it with the blocks.

The package shares no code with the passes that make partitions, so that it does not repeat a
mistake of theirs.
"""

from __future__ import annotations

from fxelastic.ir.block import BlockGraph
from fxelastic.ir.verify.boundaries import check_boundaries, find_edges
from fxelastic.ir.verify.cuts import check_fusion, check_untaken_cuts
from fxelastic.ir.verify.layout import check_layout, check_names
from fxelastic.ir.verify.mutation import check_mutation
from fxelastic.ir.verify.parameters import check_glue, check_parameters, read_weights
from fxelastic.ir.verify.stream import stream_values

__all__ = ["verify"]


def verify(partition: BlockGraph) -> None:
    """Check every invariant of a partition, in time linear in the graph.

    - Names are unique and refer to what exists; gamma is a share.
    - Every operator is in exactly one block, and the blocks are in an executable order.
    - No operator writes to its operands.
    - A block declares exactly the values that it reads and that others read from it, and these
      are tensors. A basic or oversize block reads at most one stream value and computes one
      value; only glue reads several; a context reads and computes no stream value.
    - A block's parameters are those that its operators read, each counted once in the whole graph.
      Basic blocks are within the cap; oversize blocks exceed it and have a reason. Glue has no
      parameters, unless a single operator joins several inputs or has several results.
    - No boundary separates a pair that the inference framework fuses, except for soft fusions and
      pairs at a glue block, which the partition lists.
    - Each untaken cut is inside the block that it names, and has a reason.

    Args:
        partition: The partition to check; it is not changed.

    Raises:
        PartitionError: An invariant does not hold. The message names the block and the node.
    """
    nodes = check_names(partition)
    layout = check_layout(partition, nodes)
    check_mutation(partition, layout)
    edges = find_edges(partition, layout)
    stream = stream_values(partition, layout)
    check_boundaries(partition, layout, edges, stream)
    weights = read_weights(partition, layout)
    check_parameters(partition, weights)
    check_glue(partition, layout, stream, weights)
    check_fusion(partition, layout)
    check_untaken_cuts(partition, layout)
