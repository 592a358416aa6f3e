"""Fixed scales: which values keep their precision."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fxelastic.backends.onnxruntime.quantisation.operators import choose
from fxelastic.backends.onnxruntime.quantisation.static import quantise_static


def test_a_result_and_float_operators_keep_the_precision_of_a_value() -> None:
    """The value is a result, and a linear map and a sum read it: only the map reads 8 bits."""
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Tanh", ["x"], ["h"], "tanh"),
        helper.make_node("MatMul", ["h", "w"], ["m"], "map"),
        helper.make_node("Add", ["m", "h"], ["y"], "sum"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 8]) for n in "xhmy"]
    graph = helper.make_graph(
        nodes, "g", values[:1], [values[1], values[3]], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    ranges = {"x": (-3.0, 3.0), "h": (-1.0, 1.0), "m": (-9.0, 9.0), "y": (-9.0, 9.0)}
    quantised = quantise_static(model, choose(graph, ()), ranges, {}, per_channel=True)
    onnx.checker.check_model(quantised)
    x = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(quantised.SerializeToString())
    h, y = session.run(["h", "y"], {"x": x})
    np.testing.assert_allclose(h, np.tanh(x), atol=1e-6)
    products = y - h
    assert 1e-6 < np.abs(products - np.tanh(x) @ weight).max() < 0.1
