"""The second stage: a captured graph cut into basic blocks, each of which runs by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxelastic.ir.block import Block, BlockGraph
from fxelastic.ir.graphs import to_dot, to_networkx
from fxelastic.ir.operators import attach, attribute
from fxelastic.ir.table import block_table
from fxelastic.ir.text import to_text
from fxelastic.ir.verify import verify

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Partition(BlockGraph):
    """A model as basic blocks in execution order (AdaptiveNet §4.1).

    It has the fields of `BlockGraph`, and verifies, prints and runs itself.
    """

    def verify(self) -> None:
        """Derive every invariant from the graph again and compare.

        Raises:
            PartitionError: An invariant does not hold; the message names the block and the node.
        """
        verify(self)

    @cached_property
    def modules(self) -> Mapping[str, fx.GraphModule]:
        """Each block as a standalone module, by block name.

        A module takes the block's ``inputs`` and then its ``context`` values as positional
        arguments. It returns one tensor, or a tuple of tensors for a block with several outputs.
        """
        return {block.name: extract(self, block) for block in self.blocks}

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the blocks in order: takes the model's own arguments and returns its own result.

        Raises:
            UsageError: The arguments have another structure than the example inputs, or shapes or
                dtypes that were not captured.
        """
        leaves = self.signature.flatten_arguments(args, kwargs)
        self.input_checks.check(leaves)
        values: dict[str, Any] = dict(zip(self.signature.inputs, leaves, strict=True))
        for block in self.blocks:
            operands = [values[name] for name in (*block.inputs, *block.context)]
            result = self.modules[block.name](*operands)
            if len(block.outputs) == 1:
                values[block.outputs[0]] = result
            else:
                values.update(zip(block.outputs, result, strict=True))
        outputs: Any = self.output_node.args[0]
        return self.signature.unflatten_result(
            [
                attribute(self.graph_module, str(value.target))
                if value.op == "get_attr"
                else values[value.name]
                for value in outputs
            ]
        )

    def to_text(self) -> str:
        """A stable dump for people and for diffs; the same model gives the same text."""
        return to_text(self)

    def to_dot(self) -> str:
        """The blocks as a Graphviz digraph."""
        return to_dot(self)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The blocks as a networkx graph.

        Returns:
            A graph with a node for each block, with its index in ``blocks`` as the key and its
            facts as attributes; a node for each input of the model (``"input x"``) and one for the
            result (``"result"``); and an edge for each value that a block or the result reads.
            See `fxelastic.ir.graphs.to_networkx` for the attributes.
        """
        return to_networkx(self)

    def __str__(self) -> str:
        return block_table(self)


def extract(partition: BlockGraph, block: Block) -> fx.GraphModule:
    """Copy a block's operators into a graph module of their own.

    Args:
        partition: The partition that the block belongs to.
        block: The block.

    Returns:
        A module ``(*block.inputs, *block.context) -> output``, or a tuple of ``block.outputs``
        if there are several. It shares the model's parameters by reference, under the same names.
        Node names and metadata are those of ``partition.graph``.
    """
    source, nodes = partition.graph_module, partition.nodes
    graph, root = fx.Graph(), nn.Module()
    copies: dict[fx.Node, fx.Node] = {}
    for name in (*block.inputs, *block.context):
        placeholder = graph.placeholder(name)
        placeholder.meta = dict(nodes[name].meta)
        copies[nodes[name]] = placeholder
    for name in block.nodes:
        node = nodes[name]
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and operand not in copies:
                copies[operand] = graph.node_copy(operand)
                target = str(operand.target)
                attach(root, target, attribute(source, target), persistent=False)
        if node.op == "call_module":
            attach(root, str(node.target), source.get_submodule(str(node.target)))
        copies[node] = graph.node_copy(node, copies.__getitem__)
    results = tuple(copies[nodes[name]] for name in block.outputs)
    values = tuple(result.meta.get("val") for result in results)
    output = graph.output(results[0] if len(results) == 1 else results)
    output.meta["val"] = values[0] if len(values) == 1 else values
    return fx.GraphModule(root, graph, class_name="Block")
