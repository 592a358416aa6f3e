"""8-bit branches that find the scales of activations when they run: linear maps alone."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode

from fxelastic.backends.onnxruntime.quantisation.operators import Chosen

#: Endings of the names that the quantiser gives to a weight, and to its scale.
STORED, SCALE = "_quantized", "_scale"


def linear_maps(graph: onnx.GraphProto, chosen: Chosen) -> tuple[str, ...]:
    """The names of the operators that can have dynamic scales."""
    maps = {
        node.name
        for node in graph.node
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and _is_plain(node))
    }
    return tuple(name for name in chosen.weighted if name in maps)


def quantise_dynamic(
    model: onnx.ModelProto, names: tuple[str, ...], *, per_channel: bool
) -> onnx.ModelProto:
    """Quantise linear maps of a model; activations get their scales when it runs.

    Args:
        model: A float model; it does not change.
        names: The operators to quantise, from `linear_maps`.
        per_channel: Whether each output channel of a weight has its own scale.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    turned = _as_products(copy.graph, names)
    quantiser = ONNXQuantizer(
        copy,
        per_channel,
        False,  # reduced ranges are made by `reduced`
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        list(names),
        [],
        ["MatMul"],
        {"MatMulConstBOnly": True},
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    quantised: onnx.ModelProto = quantiser.model.model
    _turn_back(quantised.graph, turned)
    return quantised


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is a product and a sum, without factors."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    factors = values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0
    return factors and not values.get("transA", 0)


def _as_products(graph: onnx.GraphProto, names: tuple[str, ...]) -> list[str]:
    """Replace Gemms by products and sums, which the quantiser takes.

    Returns:
        Names of the weights that are transposed now.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    turned: list[str] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.name not in names:
            nodes.append(node)
            continue
        weight = node.input[1]
        n_outputs = tensors[weight].dims[1]
        if any(a.name == "transB" and a.i for a in node.attribute):
            n_outputs = tensors[weight].dims[0]
            weight = f"{weight}_turned"
            if weight not in turned:
                array = numpy_helper.to_array(tensors[node.input[1]])
                graph.initializer.append(
                    numpy_helper.from_array(np.ascontiguousarray(array.T), weight)
                )
                turned.append(weight)
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], node.name))
        if biased:
            info = helper.make_tensor_value_info(product, onnx.TensorProto.FLOAT, [None, n_outputs])
            graph.value_info.append(info)
            nodes.append(
                helper.make_node(
                    "Add", [product, node.input[2]], [node.output[0]], f"{node.name}_bias"
                )
            )
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)
    # The quantiser infers shapes again, and refuses those of weights.
    infos = [v for v in graph.value_info if v.name not in tensors]
    copied = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in infos]
    del graph.value_info[:]
    graph.value_info.extend(copied)
    return turned


def _turn_back(graph: onnx.GraphProto, turned: list[str]) -> None:
    """Store weights as the other formats do, which share a file; onnxruntime turns them."""
    for weight in turned:
        stored = f"{weight}{STORED}"
        tensor = next((t for t in graph.initializer if t.name == stored), None)
        if tensor is None:
            continue
        array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
        tensor.CopyFrom(numpy_helper.from_array(array, f"{stored}_source"))
        graph.node.insert(
            0,
            helper.make_node(
                "Transpose", [f"{stored}_source"], [stored], f"{stored}_turn", perm=[1, 0]
            ),
        )
