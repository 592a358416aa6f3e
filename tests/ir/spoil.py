"""Ways to change a partition, its blocks or its graph, each leaving the original as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from fxelastic.ir import Block, Partition


def change(partition: Partition, block: str, **fields: Any) -> Partition:
    """The same partition with one block changed."""
    return replace(
        partition,
        blocks=tuple(replace(b, **fields) if b.name == block else b for b in partition.blocks),
    )


def swap(partition: Partition, i: int, j: int) -> Partition:
    """The same partition with two blocks exchanged."""
    blocks = list(partition.blocks)
    blocks[i], blocks[j] = blocks[j], blocks[i]
    return replace(partition, blocks=tuple(blocks))


def split(partition: Partition, name: str, at: int, cut: str, *left: str) -> Partition:
    """Cut a block in two after ``at`` nodes, at value ``cut``; ``left`` are the first's params."""
    blocks: list[Block] = []
    for block in partition.blocks:
        if block.name != name:
            blocks.append(block)
            continue
        right = tuple(param for param in block.params if param not in left)
        for part, nodes, params in (
            ("0", block.nodes[:at], left),
            ("1", block.nodes[at:], right),
        ):
            fields: dict[str, Any] = (
                {"output": cut, "outputs": (cut,), "context": ()}
                if part == "0"
                else {"input": cut, "inputs": (cut,)}
            )
            count = sum(partition.graph_module.get_parameter(param).numel() for param in params)
            blocks.append(
                replace(
                    block, name=name + part, nodes=nodes, params=params, n_params=count, **fields
                )
            )
    return replace(partition, blocks=tuple(blocks), untaken_cuts=())


def copy_graph(partition: Partition) -> Partition:
    """The same partition over a graph of its own, with the same names and weights."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(partition.graph, copies))
    for node, copied in copies.items():
        copied.name = node.name
    return replace(partition, graph_module=fx.GraphModule(partition.graph_module, graph))


def find(partition: Partition, name: str) -> fx.Node:
    """The node of that name."""
    return next(node for node in partition.graph.nodes if node.name == name)


def retarget(partition: Partition, name: str, target: Any, op: str = "call_function") -> Partition:
    """The same partition, in whose graph one operator is another."""
    copied = copy_graph(partition)
    node = find(copied, name)
    node.op, node.target = op, target
    return copied


def without_value(partition: Partition, name: str) -> Partition:
    """The same partition, in whose graph one node does not say what its value is."""
    copied = copy_graph(partition)
    del find(copied, name).meta["val"]
    return copied


def returning(partition: Partition, *names: str) -> Partition:
    """The same partition, whose graph returns these values."""
    copied = copy_graph(partition)
    (output,) = (node for node in copied.graph.nodes if node.op == "output")
    output.args = (tuple(find(copied, name) for name in names),)
    return copied
