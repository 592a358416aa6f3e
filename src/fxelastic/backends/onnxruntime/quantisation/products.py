"""Linear maps with fixed scales as one operator of onnxruntime, which adds the bias, too.

onnxruntime makes this operator from conversions around a product itself, but leaves a bias to a
second one. For tokens of a few hundred numbers that takes a tenth of the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import onnx
from onnx import helper

from fxelastic.backends.onnxruntime.quantisation.static import remove_unread

PRODUCT, DOMAIN = "MatMulIntegerToFloat", "com.microsoft"


def fuse_products(model: onnx.ModelProto, stored: Collection[str]) -> onnx.ModelProto:
    """A copy in which products of dequantised values and weights are one operator with the bias.

    Args:
        model: A statically quantised model whose activations have no sign. With a sign, the
            operator takes twice as long as in float on x86.
        stored: Values that exist in 8 bits anyway. Products of these stay as they are, so that
            onnxruntime finds the pairs of conversions at the border of a block.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    results = {value.name for value in graph.output}
    fused: dict[int, onnx.NodeProto] = {}
    dropped: set[int] = set()
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        left, right = (producers.get(name) for name in node.input)
        if left is None or right is None or right.input[0] not in constants:
            continue
        if {left.op_type, right.op_type} != {"DequantizeLinear"}:
            continue
        source = producers.get(left.input[0])
        if source is None or source.op_type != "QuantizeLinear" or source.input[0] in stored:
            continue
        operands = [left.input[0], right.input[0], left.input[1], right.input[1]]
        operands += [left.input[2], right.input[2]]
        output, last = node.output[0], node
        if len(readers[output]) == 1 and output not in results:
            (after,) = readers[output]
            others = [name for name in after.input if name != output]
            weight = constants[right.input[0]]
            adds = after.op_type == "Add" and len(others) == 1 and others[0] in constants
            if adds and list(constants[others[0]].dims) == [weight.dims[-1]]:
                operands.append(others[0])
                output, last = after.output[0], after
                dropped.add(id(node))
        fused[id(last)] = helper.make_node(PRODUCT, operands, [output], node.name, domain=DOMAIN)
    if not fused:
        return copy
    nodes = [fused.get(id(node), node) for node in graph.node if id(node) not in dropped]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    remove_unread(graph)
    copy.opset_import.add(domain=DOMAIN, version=1)
    return copy
