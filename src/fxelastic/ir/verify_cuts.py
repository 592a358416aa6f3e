"""Cuts not taken: each inside the block that it names, and with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxelastic.errors import PartitionError
from fxelastic.ir.verify_layout import Layout

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


def check_untaken_cuts(partition: Partition, layout: Layout) -> None:
    """Check what the partition says about cuts that were possible.

    Raises:
        PartitionError: A cut is said to be where it can't be, or has no reason.
    """
    for cut in partition.untaken_cuts:
        owner = layout.owner.get(layout.nodes[cut.value])
        if owner is None or partition.blocks[owner].name != cut.block:
            raise PartitionError(
                f"the untaken cut at {cut.value!r} is not in block {cut.block!r}",
                expected="a value that the block computes",
                got="a value of no block"
                if owner is None
                else f"a value of block {partition.blocks[owner].name!r}",
            )
        if not cut.reason:
            raise PartitionError(
                f"the untaken cut at {cut.value!r} in block {cut.block!r} has no reason",
                expected="a sentence that says why the cut was not taken",
                got="nothing",
            )
