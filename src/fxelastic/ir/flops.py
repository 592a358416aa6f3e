"""Count floating point operations from shapes.

Convention: a multiply and an add count as two; matrix operators (convolution, linear, matrix
products, attention, recurrent layers) are counted, elementwise ones are not; symbolic sizes count
as 1, so figures are per sample where the batch is dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxelastic.ir.operators import operator_name


def node_flops(node: fx.Node) -> int:
    """Floating point operations of one operator; 0 for operators that are not counted."""
    count = _COUNTERS.get(operator_name(node))
    if count is None:
        return 0
    try:
        return int(count(node))
    except (AttributeError, IndexError, KeyError, TypeError):
        # A form of the operator (missing operands) whose shapes cannot be read.
        return 0


def is_matrix_operator(node: fx.Node) -> bool:
    """Whether the operator is one of those that are counted."""
    return operator_name(node) in _COUNTERS


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


def _linear(node: fx.Node) -> int:
    return 2 * _numel(node) * _shape(node.args[1])[-1]


def _product(node: fx.Node) -> int:
    return 2 * _numel(node) * _shape(node.args[0])[-1]


def _added_product(node: fx.Node) -> int:
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
    "aten.conv1d": _convolution,
    "aten.conv2d": _convolution,
    "aten.conv3d": _convolution,
    "aten.convolution": _general_convolution,
    "aten.conv_transpose1d": _transposed_convolution,
    "aten.conv_transpose2d": _transposed_convolution,
    "aten.conv_transpose3d": _transposed_convolution,
    "aten.linear": _linear,
    "aten.matmul": _product,
    "aten.mm": _product,
    "aten.bmm": _product,
    "aten.addmm": _added_product,
    "aten.baddbmm": _added_product,
    "aten.bilinear": _bilinear,
    "aten.einsum": _einsum,
    "aten.scaled_dot_product_attention": _attention,
    "aten.lstm": _recurrent,
    "aten.gru": _recurrent,
    "aten.rnn_tanh": _recurrent,
    "aten.rnn_relu": _recurrent,
}
