"""Fixes of converted graphs that would otherwise be optimised or run wrongly, or be refused.

- `hide_small_terms`, `show_small_terms`: onnxscript takes terms of up to 1e-8 for zero and removes
  them, so that ``x / (x.norm() + 1e-9)`` and ``(x + 1e-12).log()`` are not finite at zero.

- `keep_padding`: PadFusion turns zeros before a pooling into the pooling's own padding, which a
  pooling leaves out: a maximum always (so a window of negative numbers and zeros gives a negative
  number), a mean where it counts present elements only. A pooling whose padding is as wide as its
  kernel can't be loaded. PadFusion skips a node that names its axes, which nodes may do since
  operator set 18.
- `keep_empty_reshapes`: a shape may say "as many rows as there are" in one place and "the rest" in
  another, as in a group norm. A tensor without rows has no rest, and onnxruntime raises an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

#: Terms that an optimiser may take for zero, with some distance.
_SMALL = 1e-6


def hide_small_terms(graph: ir.Graph) -> None:
    """Write additions of small constants as an operator that optimisers leave alone.

    Args:
        graph: A graph, changed in place, with its subgraphs; `show_small_terms` undoes it.
    """
    for node in graph.all_nodes():
        if node.op_type == "Add" and any(map(_is_small, node.inputs)):
            node.op_type = "Sum"


def show_small_terms(graph: ir.Graph) -> None:
    """Undo `hide_small_terms`: fusions look for ordinary additions."""
    for node in graph.all_nodes():
        if node.op_type == "Sum" and len(node.inputs) == 2:
            node.op_type = "Add"


def _is_small(value: ir.Value | None) -> bool:
    """Whether a value is a constant with a nonzero element that may count as zero."""
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    if constant is None or constant.size != 1 or not constant.dtype.is_floating_point():
        return False
    return 0 < abs(float(constant.numpy().item())) <= _SMALL


def keep_padding(graph: ir.Graph) -> None:
    """Make nodes that pad before a pooling name their axes.

    Args:
        graph: A graph of operator set 18 or later; changed in place, with its subgraphs.
    """
    for node in list(graph.all_nodes()):
        if node.op_type != "Pad" or len(node.inputs) >= 4:
            continue
        if _is_pooled(node.outputs[0], _widest(node)):
            rank = _rank(node)
            if rank is not None:
                node.resize_inputs(4)
                node.replace_input_with(3, _constant(node, "axes", range(rank)))


def _is_pooled(value: ir.Value, widest: float) -> bool:
    """Whether a pooling that can't pad by itself reads a value, directly or after a cast.

    Args:
        value: The padded value.
        widest: The largest padding at a side.
    """
    return any(
        reader.op_type == "MaxPool"
        or (reader.op_type == "AveragePool" and not _pads_alike(reader, widest))
        or (reader.op_type == "Cast" and _is_pooled(reader.outputs[0], widest))
        for reader in value.consumers()
    )


def _widest(node: ir.Node) -> float:
    """The largest padding of a node at a side; infinite if unknown."""
    pads = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    return math.inf if pads is None else float(pads.numpy().max(initial=0))


def _pads_alike(node: ir.Node, widest: float) -> bool:
    """Whether a mean computes the same with the padding as its own."""
    return _counts_padding(node) and widest < min(node.attributes["kernel_shape"].as_ints())


def _counts_padding(node: ir.Node) -> bool:
    counts = node.attributes.get("count_include_pad")
    return counts is not None and bool(counts.value)


def _rank(node: ir.Node) -> int | None:
    """Rank of the value that a node pads, half the number of paddings; None if unknown."""
    pads = node.inputs[1]
    if pads is None or pads.shape is None or not isinstance(pads.shape[0], int):
        return None
    return pads.shape[0] // 2


def keep_empty_reshapes(graph: ir.Graph) -> None:
    """Make reshapes infer the number of rows instead of the sizes after it, if these are known.

    Args:
        graph: A graph whose values have shapes; changed in place, with its subgraphs.
    """
    for node in list(graph.all_nodes()):
        if node.op_type == "Reshape" and not _allows_zero(node):
            shape = _without_rest(node)
            if shape is not None:
                node.replace_input_with(1, _constant(node, "sizes", shape))


def _allows_zero(node: ir.Node) -> bool:
    allows = node.attributes.get("allowzero")
    return allows is not None and bool(allows.value)


def _without_rest(node: ir.Node) -> list[int] | None:
    """An equal shape that works without rows; None if the node's own shape does."""
    given, wanted = node.inputs[0], node.inputs[1]
    constant = None if wanted is None else ir.convenience.get_const_tensor(wanted)
    if given is None or given.shape is None or constant is None:
        return None
    shape = [int(size) for size in constant.numpy()]
    if shape.count(0) != 1 or shape.count(-1) != 1:
        return None
    rows = shape.index(0)
    if rows >= len(given.shape) or isinstance(given.shape[rows], int):
        return None
    others = [size for i, size in enumerate(given.shape) if i != rows]
    sizes = [size for size in others if isinstance(size, int) and size > 0]
    if len(sizes) < len(others):
        return None
    rest, odd = divmod(math.prod(sizes), math.prod(size for size in shape if size > 0))
    return None if odd else [{0: -1, -1: rest}.get(size, size) for size in shape]


def _constant(node: ir.Node, what: str, numbers: Iterable[int]) -> ir.Value:
    """Add a constant to the graph of a node."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{node.outputs[0].name}_{what}"
    value = ir.val(name, const_value=ir.tensor(np.array([*numbers], np.int64), name=name))
    graph.register_initializer(value)
    return value
