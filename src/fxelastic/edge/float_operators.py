"""Keep operators with float weights in float beside 8-bit branches.

Where an operator with a float weight reads a DequantizeLinear with one scale, onnxruntime quantises
the weight when it loads the file, by one scale and to all 8 bits, and computes with the result in 8
bits. That is not what was measured of a float branch, and on an x86 processor without VNNI its sums
may exceed 16 bits. A scale for each channel, all of them equal, gives the same values, and prevents
it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm"})
# The dimension of the channels in what these operators read.
_AXIS = 1


def keep_float(graph: onnx.GraphProto) -> None:
    """Let operators with float weights read values that were dequantised by channel.

    Args:
        graph: A graph of joined branches; it is changed in place.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    added: dict[str, onnx.TensorProto] = {}
    by_channel: set[str] = set()
    for node in graph.node:
        end = producers.get(node.input[0]) if node.op_type in _WEIGHTED else None
        if end is not None and end.op_type == "DequantizeLinear":
            n_channels = _channels(node, tensors, producers)
            operands = [tensors.get(name) for name in end.input[1:]]
            if n_channels is not None and all(t is not None and not t.dims for t in operands):
                value = f"{node.input[0]}/by_channel"
                names = [f"{name}/of_{n_channels}" for name in end.input[1:]]
                if value not in by_channel:
                    by_channel.add(value)
                    inputs = [end.input[0], *names]
                    made = helper.make_node(end.op_type, inputs, [value], value, axis=_AXIS)
                    nodes.append(made)
                for name, tensor in zip(names, operands, strict=True):
                    assert tensor is not None
                    added[name] = _repeated(tensor, n_channels, name)
                node.input[0] = value
        nodes.append(node)
    if by_channel:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        graph.initializer.extend(added.values())


def _channels(
    node: onnx.NodeProto,
    tensors: Mapping[str, onnx.TensorProto],
    producers: Mapping[str, onnx.NodeProto],
) -> int | None:
    """The number of channels that an operator reads; none unless its weight is a float constant."""
    name = node.input[1]
    while name in producers and producers[name].op_type == "Cast":  # weights of 16 bits
        name = producers[name].input[0]
    if name not in tensors:
        return None
    options = {option.name: option.i for option in node.attribute}
    dims = tensors[name].dims
    if node.op_type == "Conv":
        return int(dims[1] * options.get("group", 1))
    if node.op_type == "ConvTranspose":
        return int(dims[0])
    return None if options.get("transA") else int(dims[1 if options.get("transB") else 0])


def _repeated(tensor: onnx.TensorProto, n: int, name: str) -> onnx.TensorProto:
    """A single number as a vector."""
    return numpy_helper.from_array(np.repeat(numpy_helper.to_array(tensor).reshape(1), n), name)
