"""onnxruntime leaves float operators beside 8-bit branches in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxelastic.edge.float_operators import keep_float

C = 4
WEIGHTS = {"Conv": (8, C, 3, 3), "ConvTranspose": (C, 8, 3, 3), "Gemm": (C, 8)}


def model(operator: str, *, half: bool = False) -> onnx.ModelProto:
    """An operator with a float weight between two values of 8 bits."""
    rest = ["n"] if operator == "Gemm" else ["n", 6, 6]
    weight = np.random.default_rng(0).uniform(-1, 1, WEIGHTS[operator])
    tensors = {
        "scale": np.array(0.02, np.float32),
        "zero": np.array(128, np.uint8),
        "stored" if half else "weight": weight.astype(np.float16 if half else np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node(operator, ["a", "weight"], ["b"], "b"),
        *([] if operator == "Gemm" else [helper.make_node("Relu", ["b"], ["c"])]),
        helper.make_node(
            "QuantizeLinear", ["b" if operator == "Gemm" else "c", "scale", "zero"], ["y"]
        ),
    ]
    if half:
        cast = helper.make_node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT)
        nodes.insert(0, cast)
    graph = helper.make_graph(
        nodes,
        operator,
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rest[0], C, *rest[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", 8, *"hw"[: len(rest) - 1]])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def run(made: onnx.ModelProto, path: Path, *, optimise: bool = True) -> tuple[set[str], np.ndarray]:
    """The operators that onnxruntime runs, and what they compute."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    shape = (3, C) if len(session.get_inputs()[0].shape) == 2 else (3, C, 6, 6)
    x = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    return {node.op_type for node in onnx.load(path).graph.node}, session.run(None, {"x": x})[0]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("operator", WEIGHTS)
def test_a_float_operator_between_8_bit_values_stays_float(
    operator: str, half: bool, tmp_path: Path
) -> None:
    made = model(operator, half=half)
    kept = onnx.ModelProto.FromString(made.SerializeToString())
    keep_float(kept.graph)
    onnx.checker.check_model(kept)
    found, actual = run(kept, tmp_path / "kept.onnx")
    assert not any(name.startswith(("QLinear", "QGemm")) for name in found)
    _, expected = run(made, tmp_path / "exact.onnx", optimise=False)
    assert np.abs(actual.astype(int) - expected).max() <= 1  # rounded at a half
    changed, _ = run(made, tmp_path / "changed.onnx")
    assert operator == "ConvTranspose" or changed != found


def test_what_is_quantised_or_by_channel_already_is_left_alone() -> None:
    once = model("Conv")
    keep_float(once.graph)
    twice = onnx.ModelProto.FromString(once.SerializeToString())
    keep_float(twice.graph)
    assert twice.SerializeToString() == once.SerializeToString()
    made = model("Conv")
    weights = helper.make_node("DequantizeLinear", ["q", "s"], ["weight"])
    made.graph.node.insert(0, weights)
    del made.graph.initializer[2]
    before = made.SerializeToString()
    keep_float(made.graph)
    assert made.SerializeToString() == before
