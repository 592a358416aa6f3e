"""Replace what functionalisation makes of a write to a whole tensor, which has no gradient."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, fx

from fxelastic.ir.operators import operator_name

_ATEN = torch.ops.aten


def replace_copies(graph: fx.Graph) -> None:
    """Replace each ``aten.copy(destination, source)``, which torch can't differentiate.

    Where the source already has the result's shape, strides and dtype, it is the result. Else the
    whole of the destination is overwritten by a ``slice_scatter``, which keeps the destination's
    layout as a copy does, and has a gradient.

    Args:
        graph: A functional graph; changed in place.
    """
    for node in list(graph.nodes):
        if operator_name(node) != "aten.copy":
            continue
        destination, source = node.args[:2]
        assert isinstance(destination, fx.Node)
        assert isinstance(source, fx.Node)
        result, value = node.meta["val"], source.meta["val"]
        if _same_layout(value, result):
            node.replace_all_uses_with(source)
        elif result.dim() == 0:
            with graph.inserting_before(node):
                new = _like(graph, node, _ATEN.to.dtype, source, result.dtype)
            node.replace_all_uses_with(new)
        else:
            with graph.inserting_before(node):
                if value.shape != result.shape:
                    source = _like(graph, node, _ATEN.expand_as.default, source, destination)
                    with value.fake_mode:
                        source.meta["val"] = value.expand_as(result)
                args = (destination, source, 0, 0, sys.maxsize)
                new = _like(graph, node, _ATEN.slice_scatter.default, *args)
            node.replace_all_uses_with(new)
        graph.erase_node(node)


def _like(
    graph: fx.Graph, node: fx.Node, target: torch._ops.OpOverload, *args: fx.node.Argument
) -> fx.Node:
    new = graph.create_node("call_function", target, args, name=target._opname)
    new.meta = dict(node.meta)
    return new


def _same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two fakes have the same shape, strides and dtype, by what is known of the sizes."""
    return (
        one.dtype == other.dtype
        and one.dim() == other.dim()
        and (*one.shape, *one.stride()) == (*other.shape, *other.stride())
    )
