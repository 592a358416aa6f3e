"""Which values belong to the data stream, from what they depend on.

A stream value depends on a user input through an operator that uses parameters. Such an operator
has an operand (or is a module) that depends on parameters and on no input. So a value that
depends on both an input and a parameter has passed through one, and the other way round: it is
enough to know of each value whether it depends on an input and whether on a parameter.

Sizes carry no dependence: knowing how large a value is is not reading it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from enum import Flag, auto
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxelastic.ir.verify_layout import Layout

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition

_SIZE_OPERATORS = frozenset(
    {"sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "size", "stride", "numel", "dim"}
)


class _Source(Flag):
    NOTHING = 0
    INPUT = auto()
    PARAMETER = auto()


_STREAM = _Source.INPUT | _Source.PARAMETER


def stream_values(partition: Partition, layout: Layout) -> AbstractSet[fx.Node]:
    """Find the operators whose values belong to the data stream.

    Args:
        partition: The partition; only its graph and its weights are looked at.
        layout: Gives an order in which operands come first.

    Returns:
        The operator nodes whose value is a stream value; never a placeholder.
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
    """Whether the operator reads only how large its operand is."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname in _SIZE_OPERATORS
    return node.op == "call_method" and node.target in _SIZE_OPERATORS


def _held(root: torch.nn.Module, target: str) -> _Source:
    """What reading an attribute of the graph module means: a parameter, or nothing."""
    value: object = root
    for name in target.split("."):
        value = getattr(value, name)
    if isinstance(value, torch.nn.Module):
        trained = next(value.parameters(), None) is not None
    else:
        trained = isinstance(value, torch.nn.Parameter)
    return _Source.PARAMETER if trained else _Source.NOTHING
