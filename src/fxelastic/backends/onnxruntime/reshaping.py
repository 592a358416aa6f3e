"""Reshapes of tensors that may have no rows.

Where a shape says "as many rows as there are" in one place and "what is left" in another, as in a
group norm, nothing is left of a tensor without rows, and onnxruntime refuses it.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir


def keep_empty_reshapes(graph: ir.Graph) -> None:
    """Make reshapes infer the number of rows instead of the sizes behind it, if these are known.

    Args:
        graph: A graph whose values have shapes; changed in place, with its subgraphs.
    """
    for node in list(graph.all_nodes()):
        if node.op_type == "Reshape" and not _allows_zero(node):
            shape = _without_rest(node)
            if shape is not None:
                node.replace_input_with(1, _constant(node, shape))


def _allows_zero(node: ir.Node) -> bool:
    allows = node.attributes.get("allowzero")
    return allows is not None and bool(allows.value)


def _without_rest(node: ir.Node) -> list[int] | None:
    """An equal shape that works without rows; None where the node's own shape does."""
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


def _constant(node: ir.Node, shape: list[int]) -> ir.Value:
    """A shape as a constant beside the node."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{node.outputs[0].name}_sizes"
    value = ir.val(name, const_value=ir.tensor(np.array(shape, np.int64), name=name))
    graph.register_initializer(value)
    return value
