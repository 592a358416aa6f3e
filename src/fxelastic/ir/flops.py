"""Count floating point operations from shapes.

A multiply and an add count as two. Matrix operators (convolutions, linear layers, matrix products,
attention, recurrent layers) count, elementwise operators do not. Symbolic sizes count as 1, so the
result is for one sample if the batch is dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxelastic.ir.operators import (
    CONVOLUTIONS,
    PRODUCTS,
    RECURRENT,
    TRANSPOSED_CONVOLUTIONS,
    operator_name,
)


def node_flops(node: fx.Node) -> int:
    """Floating point operations of one operator; 0 for operators that do not count."""
    count = _COUNTERS.get(operator_name(node))
    if count is None:
        return 0
    try:
        return int(count(node))
    except (AttributeError, IndexError, KeyError, TypeError):
        # A form of the operator with other operands than the counter reads.
        return 0


def _shape(operand: Any) -> list[int]:
    return [_hint(size) for size in operand.meta["val"].shape]


def _hint(size: Any) -> int:
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _numel(operand: Any) -> int:
    return math.prod(_shape(operand))


def _convolution(node: fx.Node) -> int:
    return 2 * _numel(node) * math.prod(_shape(node.args[1])[1:])


def _general_convolution(node: fx.Node) -> int:
    transposed = len(node.args) > 6 and node.args[6]
    return _transposed_convolution(node) if transposed else _convolution(node)


def _transposed_convolution(node: fx.Node) -> int:
    return 2 * _numel(node.args[0]) * math.prod(_shape(node.args[1])[1:])


def _product(node: fx.Node) -> int:
    return 2 * _numel(node) * _shape(node.args[0])[-1]


def _weighted(node: fx.Node) -> int:
    """A linear layer, or a product that is added to something: the second operand has the depth."""
    return 2 * _numel(node) * _shape(node.args[1])[-1]


def _attention(node: fx.Node) -> int:
    *batch, queries, width = _shape(node.args[0])
    keys, value_width = _shape(node.args[2])[-2:]
    return 2 * math.prod(batch) * queries * keys * (width + value_width)


def _bilinear(node: fx.Node) -> int:
    return 2 * _numel(node) * math.prod(_shape(node.args[2])[1:])


def _einsum(node: fx.Node) -> int:
    equation, operands = node.args
    sizes: dict[str, int] = {}
    for term, operand in zip(equation.partition("->")[0].split(","), operands, strict=True):  # type: ignore[union-attr, arg-type]
        sizes |= dict(zip(term.strip().replace(".", ""), _shape(operand)[::-1][::-1], strict=False))
    return 2 * math.prod(sizes.values())


def _recurrent(node: fx.Node) -> int:
    steps = math.prod(_shape(node.args[0])[:2])
    weights = next(a for a in node.args[1:] if isinstance(a, (list, tuple)) and len(a) > 2)
    return 2 * steps * sum(_numel(w) for w in weights if len(_shape(w)) == 2)


_COUNTERS: dict[str, Callable[[fx.Node], int]] = {
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
