"""One block as a standalone module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from fxelastic.ir.operators import attribute

if TYPE_CHECKING:
    from fxelastic.ir.block import Block
    from fxelastic.ir.partition import Partition


def extract(partition: Partition, block: Block) -> fx.GraphModule:
    """Copy a block's operators into a graph module of their own.

    Args:
        partition: The partition that the block belongs to.
        block: The block.

    Returns:
        A module ``(*block.inputs, *block.context) -> output``, or a tuple of ``block.outputs``
        when there are several. Parameters are shared with the model by reference and keep their
        names; node names and metadata are those of ``partition.graph``.
    """
    source = partition.graph_module
    nodes = {node.name: node for node in source.graph.nodes}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for name in (*block.inputs, *block.context):
        placeholder = graph.placeholder(name)
        placeholder.meta = dict(nodes[name].meta)
        copies[nodes[name]] = placeholder
    root = torch.nn.Module()
    for name in block.nodes:
        node = nodes[name]
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and operand not in copies:
                copies[operand] = graph.node_copy(operand)
                _attach(root, str(operand.target), attribute(source, str(operand.target)))
        if node.op == "call_module":
            _attach(root, str(node.target), source.get_submodule(str(node.target)))
        copies[node] = graph.node_copy(node, copies.__getitem__)
    results = tuple(copies[nodes[name]] for name in block.outputs)
    output = graph.output(results[0] if len(results) == 1 else results)
    output.meta["val"] = (
        results[0].meta.get("val")
        if len(results) == 1
        else tuple(result.meta.get("val") for result in results)
    )
    return fx.GraphModule(root, graph, class_name="Block")


def _attach(root: torch.nn.Module, target: str, value: object) -> None:
    """Hang a tensor or a module into ``root`` under a dotted name, by reference."""
    *path, name = target.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, torch.nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    if isinstance(value, torch.nn.Parameter):
        owner.register_parameter(name, value)
    elif isinstance(value, torch.nn.Module):
        owner.add_module(name, value)
    elif isinstance(value, torch.Tensor):
        owner.register_buffer(name, value, persistent=False)
    else:
        setattr(owner, name, value)
