"""8-bit models whose sums are exact on every processor, to measure errors with.

x86 processors without VNNI add products of an unsigned and a signed byte in pairs, in 16 bits,
which weights of 8 bits may exceed. A bundle's errors must not depend on where it was exported:
other devices compute exactly, or use weights of 7 bits. Products of two unsigned bytes are exact
everywhere, so weights without their sign give what other processors compute.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from fxelastic.backends.onnxruntime.quantisation.products import PRODUCT

# The positions of an operator's weight and of the weight's zero point.
_OPERANDS = {"DequantizeLinear": (0, 2), "MatMulInteger": (1, 3), PRODUCT: (1, 5)}
_SHIFT = 128


def with_unsigned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an 8-bit model that computes the same with weights and zero points without a sign.

    Args:
        model: A model with activations without a sign, whose weights are of ``int8``. Weights that
            it computes, as those of 7 bits, stay as they are.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensors = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    shifted: set[str] = set()
    for node in graph.node:
        weight, zero = _OPERANDS.get(node.op_type, (None, 0))
        if weight is None:
            continue
        name = turned.get(node.input[weight], node.input[weight])
        if name not in tensors:
            continue
        shifted |= {name, node.input[weight]}
        if len(node.input) > zero and node.input[zero] in tensors:
            shifted.add(node.input[zero])
        else:
            made = f"{node.input[weight]}_zero_of_{node.output[0]}"
            dims = _scale_dims(graph, node)
            graph.initializer.append(numpy_helper.from_array(np.full(dims, _SHIFT, np.uint8), made))
            node.input.extend([""] * (zero + 1 - len(node.input)))
            node.input[zero] = made
    for name in shifted & tensors.keys():
        moved = numpy_helper.to_array(tensors[name]).astype(np.int16) + _SHIFT
        tensors[name].CopyFrom(numpy_helper.from_array(moved.astype(np.uint8), name))
    for info in graph.value_info:
        if info.name in shifted:
            info.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return copy


def _scale_dims(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[int]:
    """The shape of the scale of a weight whose zero point is left out."""
    if node.op_type != "DequantizeLinear":
        return []
    return next(list(t.dims) for t in graph.initializer if t.name == node.input[1])
