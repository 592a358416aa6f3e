"""Copy a graph, so that a pass changes none that it was given."""

from __future__ import annotations

import copy

from torch import fx


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A graph of the same nodes under the same names, with metadata of their own."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = new.node_copy(node, copies.__getitem__)
        copies[node].meta = copy.copy(node.meta)
    return new
