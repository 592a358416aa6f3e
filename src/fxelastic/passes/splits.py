"""Take the parts of a split as slices where they go different ways.

``chunk`` gives a tuple, and a tuple can't cross a block boundary. As long as all of its parts end
in one region that doesn't matter. In an opened region (one half of a ShuffleNet unit passes by, the
other is convolved) each part becomes a slice of its own, which computes the same bits.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence

import torch
from torch import fx

from fxelastic.ir.operators import operator_name
from fxelastic.ir.traced import Traced
from fxelastic.passes.copying import copy_graph
from fxelastic.passes.flow import Flow
from fxelastic.passes.regions import Unit

_SPLITS = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split")
_UNBINDS = ("aten.unbind",)


def expand_splits(traced: Traced, flow: Flow, units: Sequence[Unit]) -> Traced | None:
    """Rewrite the splits whose parts go different ways.

    Args:
        traced: The captured model; not changed.
        flow: Its classification: shared context may hold splits (a fused weight).
        units: What the region search found: glue with several results may be a split.

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
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
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
