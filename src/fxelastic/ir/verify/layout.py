"""Names and layout: names are known; each operator is in one block, after its operands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block, BlockGraph, BlockKind


def check_names(partition: BlockGraph) -> Mapping[str, fx.Node]:
    """Check gamma, the names and kinds of blocks, and every node that the partition names.

    Returns:
        The nodes of the graph by name.

    Raises:
        PartitionError: A name is unknown or not unique.
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
            "the signature does not have a unique name for each input",
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
            f"block {block.name!r} has an unknown kind",
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
    partition: BlockGraph, nodes: Mapping[str, fx.Node], blocks: Mapping[str, Block]
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
    """The first and last node of a block, to identify it when its name does not."""
    return f"{block.nodes[0]} … {block.nodes[-1]}" if block.nodes else "an empty block"


OPERATORS = ("call_function", "call_module", "call_method")


@dataclass(frozen=True)
class Layout:
    """The order of the graph's operators in the blocks.

    Attributes:
        nodes: Every node by name.
        order: The operators in execution order of the blocks.
        owner: Operator → index of its block.
        results: The values that the graph returns, in order.
    """

    nodes: Mapping[str, fx.Node]
    order: tuple[fx.Node, ...]
    owner: Mapping[fx.Node, int]
    results: tuple[fx.Node, ...]


def check_layout(partition: BlockGraph, nodes: Mapping[str, fx.Node]) -> Layout:
    """Check exact cover and execution order.

    Args:
        partition: The partition, after `check_names`.
        nodes: The nodes of its graph by name.

    Raises:
        PartitionError: An operator is in no block, in two, or before one of its operands.
    """
    order: list[fx.Node] = []
    owner: dict[fx.Node, int] = {}
    for index, block in enumerate(partition.blocks):
        for name in block.nodes:
            node = nodes[name]
            if node.op not in OPERATORS:
                raise PartitionError(
                    f"block {block.name!r} lists {name!r}, which is not an operator",
                    expected="operators only: parameters, placeholders and the output node "
                    "belong to no block",
                    got=node.op,
                )
            if node in owner:
                raise PartitionError(
                    f"node {name!r} is in two places",
                    expected="each operator in exactly one block, once",
                    got=f"block {partition.blocks[owner[node]].name!r} and block {block.name!r}",
                )
            owner[node] = index
            order.append(node)
    for node in partition.graph.nodes:
        if node.op in OPERATORS and node not in owner:
            raise PartitionError(
                f"node {node.name!r} is in no block",
                expected="each operator in exactly one block",
                got=f"{node.name} = {node.target} in no block",
            )
    _check_order(partition, order, owner)
    return Layout(nodes, tuple(order), owner, _results(partition.graph))


def _check_order(partition: BlockGraph, order: list[fx.Node], owner: Mapping[fx.Node, int]) -> None:
    done: set[fx.Node] = set()
    for node in order:
        for operand in node.all_input_nodes:
            if operand in owner and operand not in done:
                raise PartitionError(
                    f"node {node.name!r} of block {partition.blocks[owner[node]].name!r} comes "
                    f"before its operand {operand.name!r}",
                    expected="a topological order over the nodes of all blocks",
                    got=f"{operand.name!r} later, in block "
                    f"{partition.blocks[owner[operand]].name!r}",
                )
        done.add(node)


def _results(graph: fx.Graph) -> tuple[fx.Node, ...]:
    outputs = [node for node in graph.nodes if node.op == "output"]
    if len(outputs) != 1:
        raise PartitionError(
            "the graph has no single output node", expected="one", got=str(len(outputs))
        )
    values = outputs[0].args[0] if outputs[0].args else None
    if not isinstance(values, (tuple, list)):
        raise PartitionError(
            "the graph's output is not flat", expected="a tuple of nodes", got=repr(values)
        )
    results: list[fx.Node] = []
    for value in values:
        if not isinstance(value, fx.Node):
            raise PartitionError(
                "the graph's output is not flat", expected="a tuple of nodes", got=repr(value)
            )
        results.append(value)
    return tuple(results)


def quoted(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(repr(name) for name in names) or "none"
