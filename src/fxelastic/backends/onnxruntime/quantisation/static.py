"""8-bit branches with fixed scales of activations: pairs of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from fxelastic.backends.onnxruntime.quantisation.operators import (
    FLOAT_RESULT,
    QUANTISABLE,
    Chosen,
)
from fxelastic.backends.onnxruntime.quantisation.ranges import Range
from fxelastic.spec.quantised import Scale

#: Operators whose result the quantiser gives the scale of their operand.
_KEEPING_SCALES = frozenset(
    {
        *("AveragePool", "Flatten", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    }
)
_TO_FLOAT = "_DequantizeLinear_Output"


def quantise_static(
    model: onnx.ModelProto,
    chosen: Chosen,
    ranges: Mapping[str, Range],
    scales: Mapping[str, Scale],
    *,
    per_channel: bool,
) -> onnx.ModelProto:
    """Quantise operators of a model with fixed scales; activations have no sign.

    Args:
        model: A float model with the types of its values; it does not change.
        chosen: The operators to quantise.
        ranges: The ranges of its values.
        scales: The scales of values between blocks.
        per_channel: Whether each output channel of a weight has its own scale.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    overrides = {
        value: [
            {
                "scale": np.array(scale.scale, np.float32),
                "zero_point": np.array(scale.zero_point, np.uint8),
            }
        ]
        for name, scale in scales.items()
        for value in _with_this_scale(model.graph, name)
        if value in ranges
    }
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    quantiser = QDQQuantizer(
        copy,
        per_channel,
        False,  # reduced ranges are made by `reduced`
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        list(chosen.names),
        [],
        list(QUANTISABLE),
        {"TensorQuantOverrides": overrides, "OpTypesToExcludeOutputQuantization": FLOAT_RESULT},
    )
    quantised: onnx.ModelProto = quantiser.quantize_model()
    _read_float(quantised.graph, chosen)
    quantiser.model.clean_initializers()
    remove_unread(quantised.graph)
    quantiser.model.topological_sort()
    return quantised


def _with_this_scale(graph: onnx.GraphProto, name: str) -> list[str]:
    """The value itself, and those that operators which keep the scale compute it from."""
    producers = {output: node for node in graph.node for output in node.output}
    given = {value.name for value in graph.input}
    found = [name]
    while (node := producers.get(found[-1])) is not None and node.op_type in _KEEPING_SCALES:
        if node.input[0] in given:
            break
        found.append(node.input[0])
    return found


def with_signed_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a statically quantised model that stores activations with a sign."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        # Weights have a sign already; these are the zero points of activations.
        if tensor.data_type == onnx.TensorProto.UINT8:
            stored = numpy_helper.to_array(tensor).astype(np.int16) - 128
            tensor.CopyFrom(numpy_helper.from_array(stored.astype(np.int8), tensor.name))
    for value in copy.graph.value_info:
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return copy


def _read_float(graph: onnx.GraphProto, chosen: Chosen) -> None:
    """Let float operators read a value itself, if it exists in float, not its 8-bit form.

    Otherwise a residual sum, or a norm, would lose precision and convert the value once more.
    """
    producers = {name: node for node in graph.node for name in node.output}
    results = {value.name for value in graph.output}
    for end in graph.node:
        begin = producers.get(end.input[0]) if end.op_type == "DequantizeLinear" else None
        if begin is None or begin.op_type != "QuantizeLinear":
            continue
        value, stored = begin.input[0], end.output[0]
        if stored in results and stored not in chosen.values:
            # The quantiser let the result be the 8-bit form, and renamed the value itself.
            _rename(graph, value, stored, f"{stored}{_TO_FLOAT}", chosen)
            end.output[0] = f"{stored}{_TO_FLOAT}"
        elif value not in chosen.values and stored not in results:
            for node in graph.node:
                if node.name not in chosen.names and node.op_type != "QuantizeLinear":
                    node.input[:] = [value if name == stored else name for name in node.input]


def _rename(graph: onnx.GraphProto, value: str, result: str, stored: str, chosen: Chosen) -> None:
    """Give a value the name of the result; operators in 8 bits read its 8-bit form."""
    for node in graph.node:
        own = stored if node.name in chosen.names else result
        node.input[:] = [own if name == result else name for name in node.input]
        node.input[:] = [result if name == value else name for name in node.input]
        node.output[:] = [result if name == value else name for name in node.output]


def remove_unread(graph: onnx.GraphProto) -> None:
    """Remove pairs of conversions whose result nothing reads any more."""
    while True:
        read: set[str] = {value.name for value in graph.output}
        read.update(name for node in graph.node for name in node.input)
        dead = [
            node
            for node in graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear")
            and not read.intersection(node.output)
        ]
        if not dead:
            return
        for node in dead:
            graph.node.remove(node)
