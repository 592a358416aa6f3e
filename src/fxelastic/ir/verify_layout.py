"""Where every operator stands: in exactly one block, after all of its operands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from fxelastic.errors import PartitionError

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition

OPERATORS = ("call_function", "call_module", "call_method")


@dataclass(frozen=True)
class Layout:
    """The graph as the blocks arrange it.

    Attributes:
        nodes: Every node by name.
        order: The operators in the order in which the blocks execute them.
        owner: Operator → index of its block.
        results: The values that the graph returns, in order.
    """

    nodes: Mapping[str, fx.Node]
    order: tuple[fx.Node, ...]
    owner: Mapping[fx.Node, int]
    results: tuple[fx.Node, ...]


def check_layout(partition: Partition, nodes: Mapping[str, fx.Node]) -> Layout:
    """Check exact cover and execution order.

    Args:
        partition: The partition; its names are known to be good.
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
                    f"block {block.name!r} lists {name!r}, which is no operator",
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
                got=f"{node.name} = {node.target} in none",
            )
    _check_order(partition, order, owner)
    return Layout(nodes, tuple(order), owner, _results(partition.graph))


def _check_order(partition: Partition, order: list[fx.Node], owner: Mapping[fx.Node, int]) -> None:
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
