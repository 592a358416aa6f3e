"""The values that cross block boundaries, and that each of them can: it must be a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.verify_layout import Layout

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


@dataclass(frozen=True)
class Crossings:
    """What goes in and out of every block, by the graph's edges alone.

    Attributes:
        reads: For each block, value read from outside → its first reader in the block. The
            values are placeholders and operators of other blocks.
        escapes: For each block, value read outside → its first reader there, in words.
    """

    reads: tuple[Mapping[fx.Node, fx.Node], ...]
    escapes: tuple[Mapping[fx.Node, str], ...]


def find_crossings(partition: Partition, layout: Layout) -> Crossings:
    """Collect the crossing values.

    Raises:
        PartitionError: A value that crosses is a tuple or a number, or a node doesn't say
            what its value is.
    """
    for node in layout.nodes.values():
        if (node in layout.owner or node.op == "placeholder") and "val" not in node.meta:
            raise PartitionError(
                f"node {node.name!r} {_origin(partition, layout, node)} has no meta['val']",
                expected="a fake tensor with its shape and dtype, a tuple of them, or a number",
                got="nothing",
            )
    reads: list[dict[fx.Node, fx.Node]] = [{} for _ in partition.blocks]
    escapes: list[dict[fx.Node, str]] = [{} for _ in partition.blocks]
    for node in layout.order:
        reader = layout.owner[node]
        for value in node.all_input_nodes:
            producer = layout.owner.get(value)
            if producer == reader or value.op == "get_attr":
                continue
            where = f"node {node.name!r} of block {partition.blocks[reader].name!r}"
            if value not in reads[reader]:
                _check_crosses(partition, layout, value, where)
                reads[reader][value] = node
            if producer is not None:
                escapes[producer].setdefault(value, where)
    for value in layout.results:
        if value in layout.owner:
            if not isinstance(value.meta["val"], (int, torch.SymInt)):  # it may return a size
                _check_crosses(partition, layout, value, "the model's result")
            escapes[layout.owner[value]].setdefault(value, "the model's result")
    return Crossings(tuple(reads), tuple(escapes))


def _check_crosses(partition: Partition, layout: Layout, value: fx.Node, reader: str) -> None:
    if not isinstance(value.meta["val"], torch.Tensor):
        raise PartitionError(
            f"value {value.name!r} {_origin(partition, layout, value)} crosses a boundary and is "
            "not a tensor",
            expected="one tensor",
            got=f"a {type(value.meta['val']).__name__}, read by {reader}",
            fix="leave the numbers that the model takes out of tensors (.item(), float()) tensors"
            if isinstance(value.meta["val"], (torch.SymInt, torch.SymFloat, torch.SymBool))
            else None,
        )


def _origin(partition: Partition, layout: Layout, node: fx.Node) -> str:
    """Where a value comes from, in words."""
    if node in layout.owner:
        return f"of block {partition.blocks[layout.owner[node]].name!r}"
    return "(an input of the model)"
