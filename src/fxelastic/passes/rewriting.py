"""Rewrites of a captured graph that make more cuts possible; each returns a new capture.

- `separate_mixtures`: T5 adds its mask to its learned position bias and passes the sum to every
  layer. The sum depends on both an input and parameters, so as a value between blocks it would be
  a second stream. Mask and table alone are contexts: each layer gets its own copy of the sum, which
  is elementwise and cheap.
- `expand_splits`: ``chunk`` returns a tuple, and a tuple can't cross a block boundary. In an opened
  region (one half of a ShuffleNet unit passes by, the other is convolved) each part becomes a
  slice, which computes the same bits.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Sequence

import torch
from torch import fx

from fxelastic.ir.operators import argument, operator_name
from fxelastic.ir.traced import Traced
from fxelastic.passes.flow import Flow
from fxelastic.passes.regions import Unit


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Copy a graph with its names; each node gets its own metadata."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = new.node_copy(node, copies.__getitem__)
        copies[node].meta = copy.copy(node.meta)
    return new


def separate_mixtures(traced: Traced, flow: Flow) -> Traced | None:
    """Give every reader of a shared mixture its own copy.

    Args:
        traced: The captured model; it is not changed.
        flow: Its classification.

    Returns:
        A new capture; None if no mixture is shared.
    """
    names = [node.name for node in flow.shared if node in flow.mixtures]
    if not names:
        return None
    graph = copy_graph(traced.graph)
    nodes = {node.name: node for node in graph.nodes}
    for name in reversed(names):
        _copy_for_readers(graph, nodes[name])
    graph_module = fx.GraphModule(traced.graph_module, graph, class_name=traced.model_name)
    return dataclasses.replace(traced, graph_module=graph_module)


def _copy_for_readers(graph: fx.Graph, node: fx.Node) -> None:
    for reader in list(node.users)[1:]:
        with graph.inserting_before(reader):
            new = graph.node_copy(node, lambda operand: operand)
        reader.replace_input_with(node, new)
    first = next(iter(node.users))
    first.prepend(node)


_SPLITS = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split")
_UNBINDS = ("aten.unbind",)


def expand_splits(traced: Traced, flow: Flow, units: Sequence[Unit]) -> Traced | None:
    """Replace the splits whose parts go to different regions by slices.

    Args:
        traced: The captured model; it is not changed.
        flow: Its classification. Shared context may hold splits (a fused weight).
        units: The units of the region search. Glue with several results may be a split.

    Returns:
        A new capture whose splits are slices; None if there is nothing to rewrite.
    """
    names = [
        unit.nodes[0].name
        for unit in units
        if unit.glue and len(unit.writes) > 1 and _is_split(unit.nodes[0])
    ]
    names += [node.name for node in flow.shared if _is_split(node)]
    if not names:
        return None
    graph_module = fx.GraphModule(
        traced.graph_module, copy_graph(traced.graph), class_name=traced.model_name
    )
    nodes = {node.name: node for node in graph_module.graph.nodes}
    for name in names:
        _expand(graph_module.graph, nodes[name])
    graph_module.recompile()
    return dataclasses.replace(traced, graph_module=graph_module)


def _is_split(node: fx.Node) -> bool:
    return operator_name(node) in _SPLITS + _UNBINDS


def _expand(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    unbind = operator_name(node) in _UNBINDS
    position = 1 if unbind else 2
    dim = argument(node, position, "dim", 0)
    assert isinstance(dim, int)
    parts = node.meta["val"]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + (1 if unbind else part.shape[dim]))
    for reader in list(node.users):
        assert reader.target is operator.getitem
        i = reader.args[1]
        assert isinstance(i, int)
        i %= len(parts)
        with graph.inserting_before(reader):
            if unbind:
                new = graph.call_function(torch.ops.aten.select.int, (source, dim, i))
            else:
                new = graph.call_function(
                    torch.ops.aten.slice.Tensor, (source, dim, starts[i], starts[i + 1])
                )
        new.meta = dict(reader.meta)
        reader.replace_all_uses_with(new)
        graph.erase_node(reader)
    graph.erase_node(node)
