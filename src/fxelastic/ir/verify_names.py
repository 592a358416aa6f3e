"""Names: unique where they identify, and known where they refer to something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block, BlockKind

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


def check_names(partition: Partition) -> Mapping[str, fx.Node]:
    """Check gamma, the blocks' names and kinds, and every node that the partition mentions.

    Returns:
        The nodes of the graph by name.

    Raises:
        PartitionError: Something is unknown or not unique.
    """
    if not 0 < partition.gamma <= 1:
        raise PartitionError(
            "gamma is not a share of the parameters",
            expected="0 < gamma <= 1",
            got=repr(partition.gamma),
        )
    nodes = {node.name: node for node in partition.graph.nodes}
    placeholders = tuple(name for name, node in nodes.items() if node.op == "placeholder")
    if partition.signature.inputs != placeholders:
        raise PartitionError(
            "the signature does not name the graph's inputs",
            expected=", ".join(placeholders),
            got=", ".join(partition.signature.inputs),
        )
    names = partition.signature.names
    if len(names) != len(placeholders) or len(set(names)) < len(names):
        raise PartitionError(
            "the signature does not give each input a name of its own",
            expected=f"{len(placeholders)} different names",
            got=", ".join(names),
        )
    blocks: dict[str, Block] = {}
    for block in partition.blocks:
        if block.name in blocks:
            raise PartitionError(
                f"two blocks are named {block.name!r}",
                expected="block names unique in the partition",
                got=f"{_ends(blocks[block.name])} and {_ends(block)}",
            )
        blocks[block.name] = block
        _check_block(block, nodes)
    _check_notes(partition, nodes, blocks)
    return nodes


def _check_block(block: Block, nodes: Mapping[str, fx.Node]) -> None:
    if block.kind not in get_args(BlockKind):
        raise PartitionError(
            f"block {block.name!r} is of an unknown kind",
            expected=" | ".join(get_args(BlockKind)),
            got=repr(block.kind),
        )
    if not block.nodes:
        raise PartitionError(
            f"block {block.name!r} is empty", expected="at least one operator", got="no nodes"
        )
    mentioned = {
        "nodes": block.nodes,
        "inputs": block.inputs,
        "context": block.context,
        "outputs": block.outputs,
        "input": () if block.input is None else (block.input,),
        "output": (block.output,),
    }
    for field, names in mentioned.items():
        for name in names:
            _check_known(name, nodes, f"block {block.name!r}, {field}")
        if field != "nodes" and len(set(names)) < len(names):
            raise PartitionError(
                f"block {block.name!r} lists a name twice in {field}",
                expected="each name once",
                got=", ".join(names),
            )


def _check_notes(
    partition: Partition, nodes: Mapping[str, fx.Node], blocks: Mapping[str, Block]
) -> None:
    for fusion in partition.soft_fusions:
        _check_known(fusion.producer, nodes, f"soft fusion {fusion.rule!r}, producer")
        _check_known(fusion.consumer, nodes, f"soft fusion {fusion.rule!r}, consumer")
    for cut in partition.untaken_cuts:
        _check_known(cut.value, nodes, "untaken cut, value")
        if cut.block not in blocks:
            raise PartitionError(
                f"the untaken cut at {cut.value!r} refers to an unknown block",
                expected="the name of a block of the partition",
                got=repr(cut.block),
            )


def _check_known(name: str, nodes: Mapping[str, fx.Node], where: str) -> None:
    if name not in nodes:
        raise PartitionError(
            f"unknown node {name!r} ({where})",
            expected="the name of a node of the partition's graph",
            got=repr(name),
        )


def _ends(block: Block) -> str:
    """A block told by its first and last node, for when its name does not tell it."""
    return f"{block.nodes[0]} … {block.nodes[-1]}" if block.nodes else "an empty block"
