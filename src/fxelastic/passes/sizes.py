"""Compute every batch-dependent size next to its reader.

A model that reads ``x.shape[0]`` once and reshapes with it everywhere ties all of its layers to a
number, which can't cross block boundaries. After this pass each size comes from an operand of the
operator that needs it, so that it moves with the operator into any block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from fxelastic.ir.operators import is_number, is_tensor, operator_name
from fxelastic.passes.normalise import remove_unused

# What expressions of sizes are made of, by the names of sympy's and torch's classes.
_FUNCTIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
}

_RESHAPES = ("aten.view", "aten.reshape", "aten._unsafe_view")


def localise_sizes(graph: fx.Graph) -> None:
    """Rewrite the readers of symbolic sizes, in place.

    Args:
        graph: A functional graph. Sizes that don't follow from an operand (they depend on data, or
            have a form unknown to this pass) are computed again for each reader from their old
            operands, and the partitioner keeps these and the reader together.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder" and is_tensor(node)]
    for node in list(graph.nodes):
        if node.op in ("placeholder", "get_attr") or is_number(node):
            continue
        numbers = [n for n in node.all_input_nodes if _expression(n) is not None]
        if not numbers:
            continue
        if operator_name(node) in _RESHAPES:
            _infer_in_reshape(node)
        elif operator_name(node) == "aten.expand":
            _keep_in_expand(node)
        for number in [n for n in node.all_input_nodes if _expression(n) is not None]:
            _rebind(graph, node, number, inputs)
    remove_unused(graph)


def _expression(node: Any) -> sympy.Expr | None:
    """The symbolic size that a node computes, or None."""
    if not isinstance(node, fx.Node):
        return None
    value = node.meta.get("val")
    if not isinstance(value, torch.SymInt):
        return None
    expression = value.node.expr
    return expression if expression.free_symbols else None


def _dimension(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(int(size))


def _infer_in_reshape(node: fx.Node) -> None:
    """``view(x, [n, 197, 64])`` → ``view(x, [-1, 197, 64])``: nothing left to compute.

    Where several sizes vary, a -1 that doesn't becomes a number: as a quotient of sizes behind
    strides it would take torch.export minutes.
    """
    sizes = list(node.args[1])  # type: ignore[arg-type]
    symbolic = [i for i, size in enumerate(sizes) if _expression(size) is not None]
    shape = node.meta["val"].shape
    for i, size in enumerate(sizes):
        if size == -1:
            if isinstance(shape[i], torch.SymInt):
                return
            sizes[i] = int(shape[i])
    if len(symbolic) != 1:
        node.update_arg(1, sizes)
        return
    if any(
        int(size) == 0
        for i, size in enumerate(sizes)
        if i not in symbolic and isinstance(size, int)
    ):
        return
    sizes[symbolic[0]] = -1
    node.update_arg(1, sizes)


def _keep_in_expand(node: fx.Node) -> None:
    """``expand(x, [n, 8, 8])`` → ``expand(x, [-1, 8, 8])`` if x has size n there already."""
    source, sizes = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    if not isinstance(source, fx.Node) or not is_tensor(source):
        return
    shape = source.meta["val"].shape
    new = len(sizes) - len(shape)
    for i, size in enumerate(sizes):
        expression = _expression(size)
        if expression is not None and i >= new and _dimension(shape[i - new]) == expression:
            sizes[i] = -1
    node.update_arg(1, sizes)


def _rebind(graph: fx.Graph, node: fx.Node, number: fx.Node, inputs: list[fx.Node]) -> None:
    expression = _expression(number)
    assert expression is not None
    operands = [operand for operand in node.all_input_nodes if is_tensor(operand)]
    local = [operand for operand in operands if operand.op != "get_attr"]
    if node.op == "output":
        local = []
    for source in (*local, *inputs):
        with graph.inserting_before(node):
            size = size_from(graph, source, expression, node)
        if size is not None:
            node.replace_input_with(number, size)
            return
    if node.op != "output":
        with graph.inserting_before(node):
            size = _from_inputs(graph, inputs, expression, node)
            node.replace_input_with(number, size or _copy(graph, number))


def _from_inputs(
    graph: fx.Graph, inputs: list[fx.Node], expression: sympy.Expr, reader: fx.Node
) -> fx.Node | None:
    """Build the computation of a size from the sizes of the model's inputs, if that is possible.

    The padded height of a feature map is an example: it is not a multiple of any size of the
    reader's operands.
    """
    stack = reader.meta.get("nn_module_stack", {})
    sizes: dict[sympy.Symbol, fx.Node] = {}
    for symbol in sorted(expression.free_symbols, key=str):
        size = next(filter(None, (size_from(graph, s, symbol, reader) for s in inputs)), None)
        if size is None:
            return None
        sizes[symbol] = size
    built = _built(graph, expression, sizes, stack)
    return built if isinstance(built, fx.Node) else None


def _built(
    graph: fx.Graph, expression: Any, sizes: Mapping[sympy.Symbol, fx.Node], stack: Any
) -> fx.Node | int | None:
    """The nodes of an expression; None if it has a function that is not known here."""
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return sizes[expression]
    parts, name = expression.args, type(expression).__name__
    if name == "Pow" and parts[1].is_Integer and parts[1] > 0:
        parts, name = parts[:1] * int(parts[1]), "Mul"
    function = _FUNCTIONS.get(name)
    if function is None:
        return None
    operands = [_built(graph, part, sizes, stack) for part in parts]
    if any(operand is None for operand in operands):
        return None
    result = operands[0]
    for operand in operands[1:]:
        values = [x.meta["val"] if isinstance(x, fx.Node) else x for x in (result, operand)]
        new = graph.call_function(function, (result, operand))
        new.meta = {"val": function(*values), "nn_module_stack": stack}
        result = new
    return result


def _copy(graph: fx.Graph, number: fx.Node) -> fx.Node:
    """Compute a number again from the same tensors, at the insertion point.

    An example is the length of an edge list plus the number of nodes, in each layer of a graph
    network: no tensor has that size, and sharing the number would tie all layers together.
    """
    if not _from_shapes(number):
        return number
    operands = {n: _copy(graph, n) for n in number.all_input_nodes if is_number(n)}
    return graph.node_copy(number, lambda n: operands.get(n, n))


def _from_shapes(number: fx.Node) -> bool:
    """Whether a number follows from shapes alone.

    A number read from data is not computed twice, since exporters don't know that both are equal.
    """
    if number.op != "call_function":
        return False
    if operator_name(number) == "aten.sym_size":
        return True
    return all(is_number(n) and _from_shapes(n) for n in number.all_input_nodes)


def size_from(
    graph: fx.Graph, source: fx.Node, expression: sympy.Expr, reader: fx.Node
) -> fx.Node | None:
    """Build the computation of a size from the shape of one tensor, at the insertion point.

    Args:
        graph: The graph to build in.
        source: A tensor from whose shape the size may follow.
        expression: The size, as ``k * s`` for a symbol ``s`` and a number ``k``, or just ``s``.
        reader: The operator whose module stack the new nodes get.

    Returns:
        The node of the size, or None if it does not follow from the shape.
    """
    stack = reader.meta.get("nn_module_stack", {})
    for dim, size in enumerate(source.meta["val"].shape):
        if isinstance(size, torch.SymInt) and size.node.expr == expression:
            return _size(graph, source, dim, stack)
    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) != 1:
        return None
    symbol = symbols[0]
    factor = sympy.simplify(expression / symbol)
    if not (factor.is_Rational and factor > 0):
        return None
    for dim, size in enumerate(source.meta["val"].shape):
        if not isinstance(size, torch.SymInt):
            continue
        ratio = sympy.simplify(expression / size.node.expr)
        if not (ratio.is_Rational and ratio > 0):
            continue
        node = _size(graph, source, dim, stack)
        if ratio.p != 1:
            node = _arithmetic(graph, operator.mul, node, int(ratio.p), stack)
        if ratio.q != 1:
            node = _arithmetic(graph, operator.floordiv, node, int(ratio.q), stack)
        return node
    return None


def _size(graph: fx.Graph, source: fx.Node, dim: int, stack: Any) -> fx.Node:
    node = graph.call_function(torch.ops.aten.sym_size.int, (source, dim))
    node.meta = {"val": source.meta["val"].shape[dim], "nn_module_stack": stack}
    return node


def _arithmetic(graph: fx.Graph, function: Any, node: fx.Node, factor: int, stack: Any) -> fx.Node:
    new = graph.call_function(function, (node, factor))
    new.meta = {"val": function(node.meta["val"], factor), "nn_module_stack": stack}
    return new
