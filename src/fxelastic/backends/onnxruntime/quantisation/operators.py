"""Which operators of a branch compute in 8 bits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

#: Operators with weights that onnxruntime computes in 8 bits.
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
#: Operators with weights whose result stays float: sums of many products need more than 8 bits
#: where a bias, a softmax or a norm follows, and the results of the model do.
FLOAT_RESULT = ("Gemm", "MatMul")

#: Operators that compute in 8 bits if all operands are: a sum of a float value and one in 8 bits
#: would lose the precision of the first.
_SUMS = frozenset({"Add", "Concat"})
#: Operators without weights that onnxruntime computes in 8 bits, if an operand is in 8 bits.
_WEIGHTLESS = _SUMS | {
    *("AveragePool", "Clip", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad"),
    *("Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
}
#: Every operator that may compute in 8 bits, in a fixed order.
QUANTISABLE = tuple(sorted(WEIGHTED | _WEIGHTLESS))


@dataclass(frozen=True)
class Chosen:
    """The operators of a graph that compute in 8 bits.

    Attributes:
        names: The names of the operators.
        weighted: Those with weights.
        values: The values that exist in 8 bits.
    """

    names: tuple[str, ...]
    weighted: tuple[str, ...]
    values: frozenset[str]


def choose(
    graph: onnx.GraphProto, crossing: Collection[str], left_float: Collection[str] = ()
) -> Chosen:
    """Choose the operators of a graph that compute in 8 bits.

    An operator without weights computes in 8 bits if it reads a value that exists in 8 bits, so
    that no value is converted for it alone.

    Args:
        graph: The graph; its nodes have names.
        crossing: The inputs of the graph that exist in 8 bits between blocks.
        left_float: Names of operators that compute in float.
    """
    weights = {
        tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    constants = {tensor.name for tensor in graph.initializer}
    values, names, weighted = set(crossing), [], []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.name in left_float:
            continue
        if node.op_type in WEIGHTED:
            if node.input[1] not in weights or node.input[0] in constants:
                continue
            weighted.append(node.name)
        elif node.op_type in _WEIGHTLESS:
            # Other inputs than the first are sizes, except for these.
            several = node.op_type in _SUMS or node.op_type == "Mul"
            operands = list(node.input) if several else list(node.input[:1])
            n_stored = sum(name in values for name in operands)
            least = len(operands) if node.op_type in _SUMS else 1
            if n_stored < least or constants.intersection(operands):
                continue
        else:
            continue
        names.append(node.name)
        if node.op_type not in FLOAT_RESULT:
            values.update(node.output)
    return Chosen(tuple(names), tuple(weighted), frozenset(values))
