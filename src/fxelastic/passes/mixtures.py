"""Compute mixtures of masks and learned tables once for each reader.

T5 adds its mask to its learned position bias and hands the sum to every layer. The sum depends on
an input and on parameters both, so as a value between blocks it would count as a second stream.
Mask and table alone are contexts: each layer gets a copy of the (elementwise, cheap) sum instead.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from fxelastic.ir.traced import Traced
from fxelastic.passes.copying import copy_graph
from fxelastic.passes.flow import Flow


def separate_mixtures(traced: Traced, flow: Flow) -> Traced | None:
    """Give every reader of a shared mixture its own copy.

    Args:
        traced: The captured model; not changed.
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
