"""A latency table goes with all bundles of a structure, whatever their weights, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxelastic import edge
from fxelastic.cli.app import main
from fxelastic.edge.structure_digest import graph_digest
from fxelastic.errors import BundleError, UsageError
from tests.edge.serving import tiny_bundle
from tests.edge.serving.tiny_bundle import steady, write_bundle

OLD = Path(__file__).parent / "latency_table_without_structure.json"
X = np.random.default_rng(0).standard_normal((12, 8, 8, 8)).astype(np.float32)
DATA = (X, np.arange(12) % tiny_bundle.CLASSES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("first") / "bundle", depth=2)


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("second") / "bundle", depth=2, seed=1)


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> edge.LatencyTable:
    return steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))


def test_a_table_measured_before_more_training_is_accepted(
    retrained: edge.Bundle, table: edge.LatencyTable, tmp_path: Path
) -> None:
    assert table.bundle_digest != retrained.digest
    assert table.structure_digest == retrained.structure_digest
    result = edge.search(retrained, table, DATA, budget="80%", max_subnets=4)
    with edge.serve(retrained, table, result.pool, budget_ms=1000.0) as runtime:
        assert runtime(X[:1]).shape == (1, tiny_bundle.CLASSES)
    # The command line, too; and the table of the same structure may be replaced.
    path = tmp_path / "table.json"
    table.save(path)
    np.savez(tmp_path / "data.npz", x=X, targets=DATA[1])
    argv = ["search", str(retrained.path), "--table", str(path), "--budget", "80%", "--quiet"]
    argv += ["--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "pool.json")]
    assert main([*argv, "--max-subnets", "4"]) == 0
    argv = ["profile", str(retrained.path), "-o", str(path), "--samples", "3", "--subnets", "0"]
    assert main([*argv, "--held-out", "0", "--quiet"]) == 0
    assert edge.LatencyTable.load(path).bundle_digest == retrained.digest


def test_scores_stay_with_their_weights(
    bundle: edge.Bundle, retrained: edge.Bundle, table: edge.LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"
    pool = edge.search(bundle, table, DATA, budget="80%", max_subnets=4, path=path).pool
    with pytest.raises(UsageError, match="pool belongs to another bundle"):
        edge.serve(retrained, table, pool, budget_ms=1000.0)
    with pytest.raises(UsageError, match="pool of another search"):
        edge.search(retrained, table, DATA, budget="80%", max_subnets=4, path=path)


@pytest.mark.parametrize(
    "options",
    [{"depth": 3}, {"width": 12}, {"size": 6}, {"batch_size": 2}, {"opset": 19}],
    ids=lambda options: next(iter(options)),
)
def test_the_table_of_another_structure_is_refused(
    table: edge.LatencyTable,
    options: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny_bundle, "OPSET", options.pop("opset", tiny_bundle.OPSET))
    other = write_bundle(tmp_path / "bundle", **{"depth": 2, **options})  # type: ignore[arg-type]
    assert other.structure_digest != table.structure_digest
    with pytest.raises(UsageError, match="other branches, shapes or operators"):
        edge.search(other, table, DATA, budget="80%")


def test_a_table_of_an_earlier_release_is_valid_for_its_own_bundle(
    bundle: edge.Bundle, retrained: edge.Bundle, tmp_path: Path
) -> None:
    """One that a release wrote before tables recorded the structure."""
    value = json.loads(OLD.read_bytes())
    assert "structure_digest" not in value
    old = edge.LatencyTable.from_json(
        json.dumps({**value, "bundle_digest": bundle.digest}).encode()
    )
    assert edge.LatencyTable.from_json(old.to_json()) == old
    edge.search(bundle, old, DATA, budget="100%", max_subnets=2)
    with pytest.raises(UsageError, match="without its structure"):
        edge.search(retrained, old, DATA, budget="100%", max_subnets=2)


def test_the_bundle_that_was_measured_is_not_read_for_it(
    table: edge.LatencyTable, bundle: edge.Bundle
) -> None:
    def unread() -> str:
        raise AssertionError

    table.check_bundle(bundle.digest, unread)
    assert not replace(table, structure_digest="").fits("e" * 64, unread)


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    from tests.edge import bundles

    with pytest.raises(BundleError, match=r"branches/original@0\.onnx is not an ONNX model"):
        _ = edge.load(bundles.write(tmp_path / "bundle")).structure_digest


# --- Graphs ------------------------------------------------------------------------------------

WEIGHT = np.ones((4, 3, 3, 3), np.float32)


def tensor(name: str, value: Any, dtype: str = "float32") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto], opset: int = 18
) -> onnx.ModelProto:
    declare = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [declare("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [declare(nodes[-1].output[0], TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def convolution(
    *more: onnx.NodeProto,
    weight: Any = WEIGHT,
    bias: Any = None,
    tensors: Sequence[onnx.TensorProto] = (),
    out: str = "c",
    **attributes: Any,
) -> onnx.ModelProto:
    inputs = ["x", "w"] if bias is None else ["x", "w", "b"]
    node = helper.make_node("Conv", inputs, [out], pads=[1, 1, 1, 1], **attributes)
    own = [tensor("w", weight)] + ([] if bias is None else [tensor("b", bias)])
    return model([node, *more], [*own, *tensors])


def then(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, ["y"], **attributes)


def constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=tensor(name, value, "int64"))


def branching(op: str) -> onnx.ModelProto:
    def body(kind: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, ["c"], ["z"])], kind, [], [output])

    node = then("If", "flag", then_branch=body("Relu"), else_branch=body(op))
    return convolution(node, tensors=[tensor("flag", True, "bool")])


def resized(scale: float) -> onnx.ModelProto:
    scales = tensor("scales", [1, 1, scale, scale])
    return convolution(then("Resize", "c", "", "scales"), tensors=[scales])


def meaned(axes: Sequence[int]) -> onnx.ModelProto:
    return convolution(then("ReduceMean", "c", "axes"), tensors=[tensor("axes", axes, "int64")])


def times(factor: Any) -> onnx.ModelProto:
    return convolution(then("Mul", "c", "f"), tensors=[tensor("f", factor)])


ALIKE: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[], onnx.ModelProto]]] = {
    "other weights": (lambda: convolution(), lambda: convolution(weight=2 * WEIGHT)),
    "other names": (lambda: convolution(), lambda: convolution(out="d")),
    # The exporter's optimiser drops what does nothing for the weights that there are.
    "a bias of zeros, dropped": (lambda: convolution(), lambda: convolution(bias=np.ones(4))),
    "a factor of one, dropped": (lambda: convolution(), lambda: times(0.5)),
    "an identity": (lambda: convolution(), lambda: convolution(then("Identity", "c"))),
    "equal weights, stored once": (
        lambda: convolution(
            helper.make_node("Mul", ["c", "f"], ["d"]),
            then("Add", "d", "f"),
            tensors=[tensor("f", np.ones((4, 1, 1)))],
        ),
        lambda: convolution(
            helper.make_node("Mul", ["c", "f"], ["d"]),
            then("Add", "d", "g"),
            tensors=[tensor("f", np.ones((4, 1, 1))), tensor("g", np.zeros((4, 1, 1)))],
        ),
    ),
    "a constant as a node": (
        lambda: meaned([2, 3]),
        lambda: convolution(constant("axes", [2, 3]), then("ReduceMean", "c", "axes")),
    ),
}

DIFFERENT: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[], onnx.ModelProto]]] = {
    "shapes": (lambda: convolution(), lambda: convolution(weight=np.ones((4, 3, 1, 1)))),
    "dtypes": (
        lambda: times(np.ones((4, 1, 1))),
        lambda: convolution(
            then("Mul", "c", "f"), tensors=[tensor("f", np.ones((4, 1, 1)), "float16")]
        ),
    ),
    "attributes": (lambda: convolution(), lambda: convolution(strides=[2, 2])),
    "operators": (
        lambda: convolution(then("Relu", "c")),
        lambda: convolution(then("Gelu", "c")),
    ),
    "operands": (
        lambda: convolution(helper.make_node("Relu", ["c"], ["r"]), then("Add", "c", "r")),
        lambda: convolution(helper.make_node("Relu", ["c"], ["r"]), then("Add", "r", "r")),
    ),
    "axes": (lambda: meaned([2, 3]), lambda: meaned([1, 2])),
    "scales of a resize": (lambda: resized(2), lambda: resized(3)),
    "bodies of a branching": (lambda: branching("Relu"), lambda: branching("Tanh")),
    "factors of several numbers": (lambda: convolution(), lambda: times(np.ones((4, 1, 1)))),
    "operator sets": (
        lambda: model([then("Relu", "x")], []),
        lambda: model([then("Relu", "x")], [], 19),
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_graphs_that_differ_in_weights_alone_have_one_digest(name: str) -> None:
    one, other = (make() for make in ALIKE[name])
    assert one != other
    assert graph_digest(one) == graph_digest(other)


@pytest.mark.parametrize("name", DIFFERENT)
def test_graphs_of_other_cost_have_other_digests(name: str) -> None:
    one, other = (make() for make in DIFFERENT[name])
    assert graph_digest(one) != graph_digest(other)
