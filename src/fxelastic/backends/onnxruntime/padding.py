"""Zeros around an image that onnxruntime would lose.

Its PadFusion makes zeros before a pooling the pooling's own padding. But that is left out: of the
maximum always, so that a window of negative numbers and zeros gives one of the former, and of the
mean where it counts only what is there. PadFusion passes by a node that names its axes, as it may
since operator set 18.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def keep_padding(graph: ir.Graph) -> None:
    """Have nodes that pad name their axes where a pooling follows.

    Args:
        graph: A graph of operator set 18 or later; changed in place, its subgraphs, too.
    """
    for node in list(graph.all_nodes()):
        if node.op_type == "Pad" and len(node.inputs) < 4 and _is_pooled(node.outputs[0]):
            rank = _rank(node)
            if rank is not None:
                node.resize_inputs(4)
                node.replace_input_with(3, _axes(node, rank))


def _is_pooled(value: ir.Value) -> bool:
    """Whether a pooling that would leave zeros out reads a value, cast or not."""
    return any(
        reader.op_type == "MaxPool"
        or (reader.op_type == "AveragePool" and not _counts_padding(reader))
        or (reader.op_type == "Cast" and _is_pooled(reader.outputs[0]))
        for reader in value.consumers()
    )


def _counts_padding(node: ir.Node) -> bool:
    counts = node.attributes.get("count_include_pad")
    return counts is not None and bool(counts.value)


def _rank(node: ir.Node) -> int | None:
    """Dimensions of what a node pads: half as many as there are paddings; None if not known."""
    pads = node.inputs[1]
    if pads is None or pads.shape is None or not isinstance(pads.shape[0], int):
        return None
    return pads.shape[0] // 2


def _axes(node: ir.Node, rank: int) -> ir.Value:
    """All axes, as a constant beside the node."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{node.outputs[0].name}_axes"
    axes = ir.tensor(np.arange(rank, dtype=np.int64), name=name)
    value = ir.val(name, const_value=axes)
    graph.register_initializer(value)
    return value
