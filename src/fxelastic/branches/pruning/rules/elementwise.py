"""Operators on each element alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from fxelastic.branches.pruning.labels import Dims, fixed
from fxelastic.branches.pruning.rules.arguments import first_operand

if TYPE_CHECKING:
    from fxelastic.branches.pruning.analysis import Analysis


def pointwise(a: Analysis, node: fx.Node) -> Dims:
    """Broadcast the operands; aligned indices go together."""
    rank = len(a.shape(node))
    result = [fixed(size) for size in a.shape(node)]
    known = [False] * rank
    for operand in node.all_input_nodes:
        dims = a.dims.get(operand)
        for d, labels in enumerate(dims or ()):
            at = d + rank - len(dims or ())
            if len(labels) != len(result[at]):
                continue  # a dimension of size 1 that is broadcast
            if known[at]:
                a.channels.unite(result[at], labels)
            else:
                result[at], known[at] = labels, True
    return tuple(result)


def same(a: Analysis, node: fx.Node) -> Dims:
    """What changes no index."""
    return a.dims[first_operand(node)]


def constant(a: Analysis, node: fx.Node) -> Dims:
    """What is made of nothing that has channels."""
    return tuple(fixed(size) for size in a.shape(node))


def prelu(a: Analysis, node: fx.Node) -> Dims:
    """One slope, or one for each channel."""
    dims, (slope,) = a.dims[first_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    if len(slope) > 1:
        a.channels.unite(dims[1], slope)
    return dims
