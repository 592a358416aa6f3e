"""What the process that prepares subnets writes: the same numbers, whatever the weights are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxelastic.edge.digests import digest
from fxelastic.edge.serving.worker import optimise
from fxelastic.edge.sessions import SessionMaker

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 32)).astype(np.float32)


def weight(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int, ...] = (32, 32)) -> object:
    values = RNG.standard_normal(shape)
    return helper.make_tensor(name, kind, shape, values.ravel().tolist())


def model(nodes: list[object], weights: list[object]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return made.SerializeToString()


def branch(name: str) -> object:
    """A graph within a graph that has a large weight of its own."""
    inner = f"{name}/weight"
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", inner], [f"{name}/y"])],
        name,
        [],
        [helper.make_tensor_value_info(f"{name}/y", TensorProto.FLOAT, None)],
        [weight(inner)],
    )


MODELS = {
    "two weights": model(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("MatMul", ["h", "b"], ["y"]),
        ],
        [weight("a"), weight("b", shape=(32, 17))],
    ),
    "none": model([helper.make_node("Relu", ["x"], ["y"])], []),
    "small ones only": model(
        [helper.make_node("Add", ["x", "a"], ["y"])], [weight("a", shape=(32,))]
    ),
    "bfloat16": model(
        [
            helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["a", "i"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "b"], ["h"]),
            helper.make_node("MatMul", ["h", "c"], ["y"]),
        ],
        [
            weight("a", TensorProto.BFLOAT16),
            numpy_helper.from_array(np.arange(32)[::-1].copy(), "i"),
        ],
    ),
    "float16": model(
        [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["h", "a"], ["g"]),
            helper.make_node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
        ],
        [weight("a", TensorProto.FLOAT16, (32, 64))],
    ),
    "graphs within": model(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["condition"]),
            helper.make_node(
                *("If", ["condition"], ["h"]),
                then_branch=branch("then"),
                else_branch=branch("else"),
            ),
            helper.make_node("MatMul", ["h", "a"], ["y"]),
        ],
        [weight("a"), helper.make_tensor("zero", TensorProto.FLOAT, (), [0.0])],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    plain = ort.InferenceSession(MODELS[name], providers=["CPUExecutionProvider"])
    written = optimise(MODELS[name], tmp_path / "0.onnx")
    assert written == {path.name: digest(path) for path in tmp_path.iterdir()}
    assert ("0.weights" in written) == (name not in ("none", "small ones only"))
    session = SessionMaker(1).open_prepared(tmp_path / "0.onnx")
    for x in (X, -X):
        (expected,), (found,) = plain.run(None, {"x": x}), session.run(None, {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_session_lives_on_when_its_files_are_deleted(tmp_path: Path) -> None:
    written = optimise(MODELS["two weights"], tmp_path / "0.onnx")
    session = SessionMaker(1).open_prepared(tmp_path / "0.onnx")
    before = session.run(None, {"x": X})[0]
    for name in written:
        (tmp_path / name).unlink()
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], before)


def test_a_digest_is_taken_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = RNG.bytes(3 * 2**16 + 5)
    path.write_bytes(data)
    pieces_s: list[float] = []
    assert digest(path, pieces_s.append) == hashlib.sha256(data).hexdigest() == digest(path)
    assert len(pieces_s) == 4
    assert min(pieces_s) >= 0.0
