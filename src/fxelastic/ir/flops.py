"""Count floating point operations from shapes.

A multiply and an add count as two. Matrix operators (convolutions, linear layers, matrix products,
attention, recurrent layers) count, elementwise operators do not. The result is for one sample if
the batch is dynamic, and for the example's sizes if others are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from fxelastic.ir.graph_symbols import size_at
from fxelastic.ir.operators import (
    CONVOLUTIONS,
    PRODUCTS,
    RECURRENT,
    TRANSPOSED_CONVOLUTIONS,
    operator_name,
)

#: The sizes of an operand: integers, or expressions.
Shape = Callable[[Any], list[Any]]


def node_flops(node: fx.Node, sizes: Mapping[Any, int] | None = None) -> int:
    """Floating point operations of one operator; 0 for operators that do not count.

    Args:
        node: The operator.
        sizes: Values of torch's symbols; 1 for those without an entry, such as the batch's.
    """
    return int(count_flops(node, lambda operand: _shape(operand, sizes or {})))


def count_flops(node: fx.Node, shape: Shape) -> Any:
    """`node_flops` for any sizes, as an integer or an expression.

    Args:
        node: The operator.
        shape: Gives the sizes of an operand, or of the operator's own result.
    """
    count = _COUNTERS.get(operator_name(node))
    if count is None:
        return 0
    try:
        return count(node, shape)
    except (AttributeError, IndexError, KeyError, TypeError):
        # A form of the operator with other operands than the counter reads.
        return 0


def _shape(operand: Any, sizes: Mapping[Any, int]) -> list[int]:
    return [size_at(size, sizes) for size in operand.meta["val"].shape]


def _convolution(node: fx.Node, shape: Shape) -> Any:
    return 2 * math.prod(shape(node)) * math.prod(shape(node.args[1])[1:])


def _general_convolution(node: fx.Node, shape: Shape) -> Any:
    transposed = len(node.args) > 6 and node.args[6]
    return _transposed_convolution(node, shape) if transposed else _convolution(node, shape)


def _transposed_convolution(node: fx.Node, shape: Shape) -> Any:
    return 2 * math.prod(shape(node.args[0])) * math.prod(shape(node.args[1])[1:])


def _product(node: fx.Node, shape: Shape) -> Any:
    return 2 * math.prod(shape(node)) * shape(node.args[0])[-1]


def _weighted(node: fx.Node, shape: Shape) -> Any:
    """A linear layer, or a product that is added to something: the second operand has the depth."""
    return 2 * math.prod(shape(node)) * shape(node.args[1])[-1]


def _attention(node: fx.Node, shape: Shape) -> Any:
    *batch, queries, width = shape(node.args[0])
    keys, value_width = shape(node.args[2])[-2:]
    return 2 * math.prod(batch) * queries * keys * (width + value_width)


def _bilinear(node: fx.Node, shape: Shape) -> Any:
    return 2 * math.prod(shape(node)) * math.prod(shape(node.args[2])[1:])


def _einsum(node: fx.Node, shape: Shape) -> Any:
    equation, operands = node.args
    terms = str(equation).replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, Any] = {}
    for term, operand in zip(terms, operands, strict=True):  # type: ignore[arg-type]
        dims = shape(operand)
        first, _, last = term.partition("...")
        sizes |= dict(zip(first, dims, strict=False))
        sizes |= dict(zip(reversed(last), reversed(dims), strict=False))
        # Dimensions of an ellipsis are counted from their last one, and broadcast.
        for i, size in enumerate(reversed(dims[len(first) : len(dims) - len(last)])):
            if sizes.get(f"...{i}", 1) == 1:
                sizes[f"...{i}"] = size
    return 2 * math.prod(sizes.values())


def _recurrent(node: fx.Node, shape: Shape) -> Any:
    steps = math.prod(shape(node.args[0])[:2])
    # The weights follow the states, of which an LSTM has a list, too.
    weights = [a for a in node.args[1:] if isinstance(a, (list, tuple))][-1]
    return 2 * steps * sum(math.prod(shape(w)) for w in weights if len(shape(w)) == 2)


_COUNTERS: dict[str, Callable[[fx.Node, Shape], Any]] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED_CONVOLUTIONS, _transposed_convolution),
    "aten.convolution": _general_convolution,
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(("aten.linear", "aten.addmm", "aten.baddbmm"), _weighted),
    "aten.bilinear": _bilinear,
    "aten.einsum": _einsum,
    "aten.scaled_dot_product_attention": _attention,
    **dict.fromkeys(RECURRENT, _recurrent),
}
