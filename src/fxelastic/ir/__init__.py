"""The stages' types: what capture, partition and branching produce."""

from fxelastic.ir.block import Block, BlockKind, OpenedModule, SoftFusion, UntakenCut
from fxelastic.ir.partition import Partition
from fxelastic.ir.signature import Signature
from fxelastic.ir.traced import Traced

__all__ = [
    "Block",
    "BlockKind",
    "OpenedModule",
    "Partition",
    "Signature",
    "SoftFusion",
    "Traced",
    "UntakenCut",
]
