"""The values of the data stream, by their dependence on inputs and parameters.

A stream value depends on an input through an operator that uses parameters. That is so exactly if
it depends on both an input and a parameter: where the two first meet, the operator has an operand
(or is a module) that depends on parameters and on no input.

Sizes carry no dependence: reading the size of a value is not reading the value.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from enum import Flag, auto

import torch
from torch import fx

from fxelastic.ir.block import BlockGraph
from fxelastic.ir.verify.layout import Layout

_SIZE_OPERATORS = frozenset(
    {"sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "size", "stride", "numel", "dim"}
)


class _Source(Flag):
    NOTHING = 0
    INPUT = auto()
    PARAMETER = auto()


_STREAM = _Source.INPUT | _Source.PARAMETER


def stream_values(partition: BlockGraph, layout: Layout) -> AbstractSet[fx.Node]:
    """Find the operators whose values belong to the data stream.

    Args:
        partition: The partition; only its graph and weights matter.
        layout: Its order has operands before their readers.

    Returns:
        The operator nodes whose value is a stream value, without placeholders.
    """
    sources: dict[fx.Node, _Source] = {}
    for node in layout.nodes.values():
        if node.op == "placeholder":
            sources[node] = _Source.INPUT
        elif node.op == "get_attr":
            sources[node] = _held(partition.graph_module, str(node.target))
    for node in layout.order:
        source = _Source.NOTHING
        if not reads_size(node):
            for operand in node.all_input_nodes:
                source |= sources[operand]
            if node.op == "call_module":
                source |= _held(partition.graph_module, str(node.target))
        sources[node] = source
    return {node for node in layout.order if sources[node] == _STREAM}


def reads_size(node: fx.Node) -> bool:
    """Whether the operator reads only the size of its operand."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname in _SIZE_OPERATORS
    return node.op == "call_method" and node.target in _SIZE_OPERATORS


def _held(root: torch.nn.Module, target: str) -> _Source:
    """The source of an attribute of the graph module: a parameter, or nothing."""
    value: object = root
    for name in target.split("."):
        value = getattr(value, name)
    if isinstance(value, torch.nn.Module):
        trained = next(value.parameters(), None) is not None
    else:
        trained = isinstance(value, torch.nn.Parameter)
    return _Source.PARAMETER if trained else _Source.NOTHING
