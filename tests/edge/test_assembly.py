"""A subnet as one ONNX model, put together from files written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxelastic import edge
from fxelastic.edge.assembly import rename_graph
from fxelastic.edge.model_file import write_model
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from tests.edge.bundles import DATA, VALUES, file_info, manifest

ROOT = Path(__file__).parents[2]
OPSET = helper.make_opsetid("", 20)
WEIGHT = np.arange(24, dtype=np.float32).reshape(3, 8) / 24


def value_info(name: str) -> onnx.ValueInfoProto:
    info = next(value for value in VALUES if value.name == name)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype))
    return helper.make_tensor_value_info(name, kind, list(info.dims))


def model(
    inputs: list[str], outputs: list[str], nodes: list[onnx.NodeProto], **weights: Any
) -> onnx.ModelProto:
    """A branch's file. Inner values have the same names in all of them: ``t``, ``w``."""
    graph = helper.make_graph(
        nodes,
        "branch",
        [value_info(name) for name in inputs],
        [value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[OPSET], ir_version=10)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    name = f"node_{outputs}" if kind == "MatMul" else ""
    return helper.make_node(kind, inputs.split(), outputs.split(), name=name, **attributes)


def repeat(source: str) -> list[onnx.NodeProto]:
    """h2 of 64 * N rows."""
    return [
        node("Concat", " ".join([source] * 64), "t", axis=0),
        node("Relu", "t", "h2"),
    ]


def condition(source: str, *operators: str) -> onnx.NodeProto:
    """h1 by an If whose branches read outer values and weights."""
    graphs = []
    for operator in operators:
        graph = helper.make_graph(
            [node(operator, "t", "u")],
            "inner",
            [],
            [helper.make_tensor_value_info("u", TensorProto.FLOAT, None)],
        )
        graphs.append(graph)
    return node("If", source, "h1", then_branch=graphs[0], else_branch=graphs[1])


MODELS = {
    "original@0": model(
        ["x"],
        ["mask"],
        [node("ReduceSum", "x w", "t", keepdims=1), node("Greater", "t zero", "mask")],
        w=np.array([1]),
        zero=np.float32(0),
    ),
    "original@1": model(
        ["x"], ["h1"], [node("MatMul", "x w", "t"), condition("c", "Abs", "Neg")],
        w=WEIGHT, c=np.array(True),
    ),
    "merged@1-3": model(
        ["x", "mask"],
        ["h2"],
        [node("Cast", "mask", "y", to=TensorProto.FLOAT), node("MatMul", "x w", "m"),
         node("Mul", "m y", "h1"), *repeat("h1")],
        w=WEIGHT,
    ),
    "original@2": model(["h1"], ["h2"], repeat("h1")),
    "pruned@2": model(
        ["h1"], ["h2"], [node("Add", "h1 w", "v"), *repeat("v")], w=np.float32([1])
    ),
    "original@3": model(
        ["h2", "mask"],
        ["y"],
        [node("Slice", "h2 zero n ax", "s"), node("MatMul", "s w", "t"),
         node("Cast", "mask", "c", to=TensorProto.FLOAT), node("Add", "t c", "y")],
        w=np.ones((8, 2), np.float32), zero=np.array([0]), n=np.array([1]), ax=np.array([0]),
    ),
}  # fmt: skip


def write(folder: Path, models: dict[str, onnx.ModelProto]) -> edge.Bundle:
    """The hand-written bundle with ONNX files that compute something."""
    made = manifest()
    files = {segment.id: models[segment.id].SerializeToString() for segment in made.segments}
    segments = [
        replace(segment, model=file_info(segment.file, files[segment.id]), data=())
        for segment in made.segments
    ]
    for path, data in DATA.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    for segment in segments:
        (folder / segment.file).write_bytes(files[segment.id])
    (folder / "manifest.json").write_bytes(replace(made, segments=tuple(segments)).to_json())
    return edge.load(folder)


@pytest.fixture
def bundle(tmp_path: Path) -> edge.Bundle:
    return write(tmp_path / "bundle", MODELS)


def run(model: onnx.ModelProto | Path, feeds: dict[str, Any]) -> dict[str, Any]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


X = np.float32([[1, -2, 3]])
FEEDS = {"x": X, "unused": np.array([7])}


@pytest.mark.parametrize(
    "text",
    [
        "original@0,original@1,original@2,original@3",
        "original@0,merged@1-3,original@3",
        "original@0,original@1,pruned@2,original@3",
    ],
)
def test_a_subnet_computes_what_its_branches_do(
    bundle: edge.Bundle, tmp_path: Path, text: str
) -> None:
    values = dict(FEEDS)
    for branch in text.split(","):
        segment = bundle.segment(branch)
        values |= run(MODELS[branch], {name: values[name] for name in segment.inputs})
    path = edge.assemble(bundle, Arch.parse(text), tmp_path / "subnet.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    results = run(path, FEEDS)
    assert list(results) == ["logits", "features", "ids"]
    np.testing.assert_array_equal(results["logits"], values["y"])
    np.testing.assert_array_equal(results["features"], values["h2"])
    np.testing.assert_array_equal(results["ids"], [0, 0])
    assert values["h2"].shape == (64, 8)


def test_inputs_are_the_models_even_where_nothing_reads_them(
    bundle: edge.Bundle, tmp_path: Path
) -> None:
    path = edge.assemble(bundle, bundle.space.original, tmp_path / "m.onnx")
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["x", "unused"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert graph.output[1].type.tensor_type.shape.dim[0].dim_param == "64*N"


def test_equal_weights_are_stored_once(bundle: edge.Bundle, tmp_path: Path) -> None:
    """The same zero is in two branches, under two types."""
    path = edge.assemble(bundle, Arch.parse("original@0,original@1,pruned@2,original@3"),
                         tmp_path / "m.onnx")  # fmt: skip
    arrays = [numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer]
    kinds = [t.data_type for t in onnx.load(path).graph.initializer]
    assert len(set(zip(arrays, kinds, strict=True))) == len(arrays)


def test_inner_sizes_of_two_branches_may_have_one_name(tmp_path: Path) -> None:
    """Symptom: onnxruntime fails with "Shape mismatch attempting to re-use buffer"."""
    steps = [node("Cos", "a", "b"), node("Sin", "b", "c")]
    models = {
        **MODELS,
        "original@1": model(
            ["x"], ["h1"], [node("MatMul", "x w", "a"), *steps, node("Abs", "c", "h1")], w=WEIGHT
        ),
        "original@2": model(
            ["h1"],
            ["h2"],
            [node("Concat", " ".join(["h1"] * 64), "a", axis=0), *steps, node("Abs", "c", "h2")],
        ),
    }
    for branch in ("original@1", "original@2"):
        for name in "abc":
            info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["unk__0", 8])
            models[branch].graph.value_info.append(info)
    bundle = write(tmp_path / "bundle", models)
    path = edge.assemble(bundle, bundle.space.original, tmp_path / "m.onnx")
    expected = np.abs(np.sin(np.cos(np.abs(np.sin(np.cos(X @ WEIGHT))))))
    np.testing.assert_allclose(run(path, FEEDS)["features"], [expected[0]] * 64, rtol=1e-5)


def test_what_no_result_needs_is_left_out(tmp_path: Path) -> None:
    """Symptom: a subnet computes the masks of branches that it does not have."""
    models = dict(MODELS)
    models["original@3"] = model(
        ["h2", "mask"],
        ["y"],
        [node("Identity", "mask", "dead"), node("MatMul", "h2 w", "y")],
        w=np.ones((8, 2), np.float32),
    )
    bundle = write(tmp_path / "bundle", models)
    path = edge.assemble(bundle, bundle.space.original, tmp_path / "m.onnx")
    graph = onnx.load(path).graph
    assert {n.op_type for n in graph.node}.isdisjoint({"ReduceSum", "Greater"})
    assert "original@0/w" not in {tensor.name for tensor in graph.initializer}


def test_an_arch_of_another_model_is_refused(bundle: edge.Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the arch ends at position 1"):
        edge.assemble(bundle, Arch(("original@0",)), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.opset_import.__getitem__(0).__setattr__("version", 19), "operator set"),
        (
            lambda m: m.graph.output[0].__setattr__("name", "other"),
            "the outputs of .* differ from those",
        ),
        (
            lambda m: m.graph.input[0].__setattr__("name", "other"),
            "the inputs of .* differ from those",
        ),
        (lambda m: m.functions.add(name="f"), "must not contain functions"),
        (lambda m: m.graph.node[0].__setattr__("op_type", "Nonsense"), "not a valid ONNX model"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    models = dict(MODELS)
    models["original@2"] = onnx.ModelProto()
    models["original@2"].CopyFrom(MODELS["original@2"])
    change(models["original@2"])
    bundle = write(tmp_path / "bundle", models)
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(BundleError, match=message):
        edge.assemble(bundle, bundle.space.original, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "m.onnx"]


def test_large_weights_go_to_a_file_of_their_own(bundle: edge.Bundle, tmp_path: Path) -> None:
    weight = np.arange(10_000, dtype=np.float32)
    graph = helper.make_graph(
        [node("Add", "a w", "b")],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [10_000])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [10_000])],
        [numpy_helper.from_array(weight, "w")],
    )
    large = helper.make_model(graph, opset_imports=[OPSET], ir_version=10)
    path = write_model(large, tmp_path / "m.onnx", "it", max_file_bytes=1000)
    assert path.stat().st_size < 1000
    assert len(list(tmp_path.glob("m.onnx.*.data"))) == 1
    np.testing.assert_array_equal(run(path, {"a": weight})["b"], 2 * weight)


def test_a_folder_that_is_not_there_is_a_usage_error(bundle: edge.Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't write"):
        edge.assemble(bundle, bundle.space.original, tmp_path / "none" / "m.onnx")


def test_names_of_optional_operands_stay_empty() -> None:
    graph = helper.make_graph([helper.make_node("Clip", ["x", "", "m"], ["y"])], "g", [], [])
    rename_graph(graph, {"x": "renamed"}, "p/")
    assert list(graph.node[0].input) == ["renamed", "", "p/m"]
    assert list(graph.node[0].output) == ["p/y"]


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript", "onnx_ir", "networkx", "sympy"):
            raise ImportError(f"{name} is not on the device")

sys.meta_path.insert(0, NoTorch())
from fxelastic import edge
from fxelastic.cli import main

bundle = edge.load(sys.argv[1])
bundle.verify()
for i, arch in enumerate([bundle.space.original, *bundle.space.sample(2)]):
    edge.assemble(bundle, arch, f"{sys.argv[2]}/{i}.onnx")
assert main(["inspect", sys.argv[1]]) == 0
assert not {"torch", "onnx_ir"} & set(sys.modules)
"""


def test_the_device_needs_no_torch(bundle: edge.Bundle, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(bundle.path), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.onnx"))) == 3
