"""Weights of 7 bits, from the same stored bytes as weights of 8 bits.

x86 processors without VNNI add products of an unsigned and a signed byte in pairs, in 16 bits. With
8-bit weights the sums may exceed these. The values are halved in the graph: onnxruntime does so
once, when it loads the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fxelastic.backends.onnxruntime.quantisation.dynamic import SCALE, STORED
from fxelastic.backends.onnxruntime.quantisation.products import PRODUCT

_HALF = "half_of_a_weight"


def reduce_range(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an 8-bit model whose weights use 7 bits.

    Args:
        model: A model with weights of ``int8``, whose scales are initializers.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    halved: dict[str, str] = {}
    scales: set[str] = set()
    for node in graph.node:
        read, scale = _weight(node)
        weight = turned.get(read, read)
        if weight not in tensors or scale not in tensors:
            continue
        tensor = tensors[weight]
        if tensor.data_type == onnx.TensorProto.INT8:
            halved[weight] = f"{weight}_7bit"
        elif tensor.data_type == onnx.TensorProto.INT32:  # a bias
            _set(tensor, np.round(numpy_helper.to_array(tensor) / 2).astype(np.int32))
        scales.add(scale)
    for scale in sorted(scales):
        _set(tensors[scale], numpy_helper.to_array(tensors[scale]) * np.float32(2))
    for node in graph.node:
        node.input[:] = [halved.get(name, name) for name in node.input]
    steps = [step for weight, half in halved.items() for step in _halving(weight, half)]
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*steps, *rest])
    graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), _HALF))
    return copy


def _weight(node: onnx.NodeProto) -> tuple[str, str]:
    """The names of the weight that a node reads and of its scale; empty for other nodes."""
    if node.op_type == "DequantizeLinear":
        return node.input[0], node.input[1]
    if node.op_type == PRODUCT:
        return node.input[1], node.input[3]
    if node.op_type == "MatMulInteger":
        return node.input[1], f"{node.input[1].removesuffix(STORED)}{SCALE}"
    return "", ""


def _halving(weight: str, half: str) -> list[onnx.NodeProto]:
    """Nodes that compute half of a weight, rounded."""
    kinds = {"real": onnx.TensorProto.FLOAT, "stored": onnx.TensorProto.INT8}
    names = [f"{half}_{step}" for step in ("real", "scaled", "rounded")]
    return [
        helper.make_node("Cast", [weight], names[:1], names[0], to=kinds["real"]),
        helper.make_node("Mul", [names[0], _HALF], names[1:2], names[1]),
        helper.make_node("Round", names[1:2], names[2:], names[2]),
        helper.make_node("Cast", names[2:], [half], half, to=kinds["stored"]),
    ]


def _set(tensor: onnx.TensorProto, array: np.ndarray[Any, Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
