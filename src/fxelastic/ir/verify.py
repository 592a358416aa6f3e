"""Prove a partition: every invariant derived anew from the graph and compared with the blocks.

Nothing here, nor in the ``verify_*`` files, is shared with the code that makes partitions. A
mistake there must not be repeated here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxelastic.ir.verify_boundaries import check_boundaries
from fxelastic.ir.verify_crossings import find_crossings
from fxelastic.ir.verify_cuts import check_untaken_cuts
from fxelastic.ir.verify_dependence import stream_values
from fxelastic.ir.verify_fusion import check_fusion
from fxelastic.ir.verify_glue import check_glue
from fxelastic.ir.verify_layout import check_layout
from fxelastic.ir.verify_mutation import check_mutation
from fxelastic.ir.verify_names import check_names
from fxelastic.ir.verify_parameters import check_parameters
from fxelastic.ir.verify_weights import read_weights

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


def verify(partition: Partition) -> None:
    """Check that a partition is what it claims to be, in time linear in the graph.

    - Names are unique and refer to what exists; gamma is a share.
    - Every operator is in exactly one block, and the blocks are in an executable order.
    - No operator writes to its operands.
    - What a block reads and what others read of it is exactly what it declares, and consists of
      tensors. A basic or oversize block reads at most one stream value and gives one value; only
      glue reads several; a context reads and gives none of the stream.
    - A block's parameters are those its operators read, each counted once over the whole graph;
      basic blocks are within the cap, oversize ones above it and say why; glue has none, unless
      a single operator joins several inputs or gives several results.
    - No boundary separates what the inference framework fuses. A soft fusion and one at a glue
      block may be separated, and are listed.
    - A cut that was not taken is inside the block that it names, and has a reason.

    Args:
        partition: The partition to check. It isn't changed.

    Raises:
        PartitionError: An invariant does not hold. The message names the block and the node.
    """
    nodes = check_names(partition)
    layout = check_layout(partition, nodes)
    check_mutation(partition, layout)
    crossings = find_crossings(partition, layout)
    stream = stream_values(partition, layout)
    check_boundaries(partition, layout, crossings, stream)
    weights = read_weights(partition, layout)
    check_parameters(partition, weights)
    check_glue(partition, layout, stream, weights)
    check_fusion(partition, layout)
    check_untaken_cuts(partition, layout)
