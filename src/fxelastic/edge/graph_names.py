"""Rename values and nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx


def rename_graph(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str) -> None:
    """Rename every value and node of a graph and its subgraphs in place.

    Args:
        graph: The graph.
        names: New names for values.
        prefix: Precedes the name of each value that ``names`` lacks, and of each node.
    """

    def new(name: str) -> str:
        # An empty name is an optional operand that is left out.
        return names.get(name, f"{prefix}{name}") if name else name

    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new(value.name)
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
        sparse.indices.name = new(sparse.indices.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = new(annotation.tensor_name)
    for node in graph.node:
        # Nodes may have no name, but no two may have the same.
        node.name = f"{prefix}{node.name}" if node.name else ""
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        for attribute in node.attribute:
            # Reading an unset attribute.g would give an empty graph, and renaming would set it.
            inner = [attribute.g] if attribute.HasField("g") else []
            for subgraph in (*inner, *attribute.graphs):
                rename_graph(subgraph, names, prefix)
