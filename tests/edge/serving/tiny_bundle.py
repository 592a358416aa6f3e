"""A real bundle made without torch: a chain of convolutions with branches of several kinds.

Every block is ``relu(conv(h) + h)``, the last one a mean over space and a matrix; each original
has a narrower stand-in, and pairs of blocks have a merged one. Exits are heads like the last block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fxelastic.edge.bundle import Bundle, load
from fxelastic.spec import EXIT, ORIGINAL, Arch, BranchSpec, branch_id
from fxelastic.spec.bundle_files import MANIFEST_NAME, FileInfo
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.manifest import BackendInfo, BlockInfo, Manifest, ModelInfo, Result
from fxelastic.spec.segment import Segment
from fxelastic.spec.symbols import Symbol, dimension
from fxelastic.spec.value_info import ValueInfo

OPSET, IR_VERSION = 18, 9
CLASSES = 5


def write_bundle(
    folder: Path,
    depth: int = 4,
    width: int = 8,
    size: int = 8,
    seed: int = 0,
    batch_size: int | None = None,
    sizes: tuple[Symbol, ...] = (),
    per_place: bool = False,
    exits: tuple[int, ...] = (),
) -> Bundle:
    """Write a bundle and load it.

    Args:
        folder: A folder that is not there yet.
        depth: Convolution blocks.
        width: Channels.
        size: Rows and columns.
        seed: Of the weights.
        batch_size: A fixed batch size; any where None.
        sizes: Symbols for the rows and columns; the last ones may be fixed to ``size``.
        per_place: Return logits of each place, ``(N, CLASSES, H, W)``, not of each sample.
        exits: The numbers of blocks that run before an exit.
    """
    rng = np.random.default_rng(seed)
    n = batch_size or "N"
    area = (*(symbol.name for symbol in sizes), *[size] * (2 - len(sizes)))
    values = [
        ValueInfo("x", "float32", (n, width, *area), -1, 0),
        *(ValueInfo(f"h{i}", "float32", (n, width, *area), i, i + 1) for i in range(depth)),
        ValueInfo("y", "float32", (n, CLASSES, *(area * per_place)), depth, depth + 1),
    ]
    branches: list[tuple[str, int, int, onnx.ModelProto]] = []
    for i in range(depth):
        branches.append((ORIGINAL, i, i + 1, _block(rng, values, i, i + 1, width, width)))
        branches.append(("pruned50", i, i + 1, _block(rng, values, i, i + 1, width, width // 2)))
        if i + 2 <= depth:
            branches.append(("merged", i, i + 2, _block(rng, values, i, i + 2, width, width)))
    branches.append((ORIGINAL, depth, depth + 1, _head(rng, values, depth, width, per_place)))
    for i in exits:
        branches.append((EXIT, i, depth + 1, _head(rng, values, i, width, per_place)))
    (folder / "branches").mkdir(parents=True)
    segments = []
    for kind, start, stop, model in branches:
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString(deterministic=True)
        weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
        n_params = sum(weight.size for weight in weights)
        name = branch_id(kind, start, stop)
        flops = "*".join(map(str, (2 * n_params, *area)))
        by_size = flops if sizes else ""
        n_flops = dimension(flops).at({symbol.name: symbol.example for symbol in sizes})
        path = f"branches/{name}.onnx"
        (folder / path).write_bytes(data)
        segments.append(
            Segment(
                BranchSpec(name, kind, start, stop, n_params, n_flops, by_size),
                FileInfo(path, len(data), hashlib.sha256(data).hexdigest()),
                tuple(value.name for value in model.graph.input),
                tuple(value.name for value in model.graph.output),
                sum(weight.nbytes for weight in weights),
            )
        )
    n_params = sum(segment.spec.n_params for segment in segments)
    manifest = Manifest(
        ModelInfo(*("Tiny", "0" * 64, n_params, batch_size is None, batch_size or 2), sizes=sizes),
        BackendInfo("onnxruntime", OPSET, "at-once", "", {}),
        tuple(BlockInfo(f"block{i}", "basic") for i in range(depth + 1)),
        tuple(sorted(segments, key=lambda s: _order(s.spec))),
        tuple(values),
        ("x",),
        (Result("logits", "y"),),
        {"tensor": 0},
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return load(folder)


def reference(bundle: Bundle, arch: Arch, inputs: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """A subnet's output, branch after branch, by ONNX's own reference implementation."""
    values = dict(inputs)
    for branch in arch:
        model = onnx.ModelProto.FromString(bundle.read(branch))
        outputs = ReferenceEvaluator(model).run(None, _fed(model, values))
        values.update(zip(bundle.segment(branch).outputs, outputs, strict=True))
    return np.asarray(values["y"])


def _fed(model: onnx.ModelProto, values: Mapping[str, Any]) -> dict[str, Any]:
    return {value.name: values[value.name] for value in model.graph.input}


def _order(spec: BranchSpec) -> tuple[int, int, bool, str]:
    return spec.start, spec.stop, spec.kind != ORIGINAL, spec.id


def _block(
    rng: np.random.Generator, values: list[ValueInfo], start: int, stop: int, width: int, mid: int
) -> onnx.ModelProto:
    first = _weights(rng, "first", (mid, width, 3, 3))
    second = _weights(rng, "second", (width, mid, 1, 1))
    nodes = [
        helper.make_node("Conv", [values[start].name, "first"], ["wide"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("Conv", ["active", "second"], ["narrow"]),
        helper.make_node("Add", ["narrow", values[start].name], ["sum"]),
        helper.make_node("Relu", ["sum"], [values[stop].name]),
    ]
    return _model(nodes, values[start], values[stop], [first, second])


def _head(
    rng: np.random.Generator, values: list[ValueInfo], start: int, width: int, per_place: bool
) -> onnx.ModelProto:
    if per_place:
        weights = _weights(rng, "weight", (CLASSES, width, 1, 1))
        node = helper.make_node("Conv", [values[start].name, "weight"], [values[-1].name])
        return _model([node], values[start], values[-1], [weights])
    weights = _weights(rng, "weight", (width, CLASSES))
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = [
        helper.make_node("ReduceMean", [values[start].name, "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], [values[-1].name]),
    ]
    return _model(nodes, values[start], values[-1], [weights, axes])


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    scale = 1 / np.sqrt(np.prod(shape) / max(shape[0], 1))
    return numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name)


def _model(
    nodes: list[onnx.NodeProto],
    read: ValueInfo,
    computed: ValueInfo,
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    for i, node in enumerate(nodes):
        node.name = f"node{i}"
    graph = helper.make_graph(nodes, "branch", [_declare(read)], [_declare(computed)], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _declare(value: ValueInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, list(value.dims))


def steady(table: LatencyTable) -> LatencyTable:
    """A table of such a bundle with times that no noise moves: about half can be saved."""
    costs = {
        name: {"original": 1.0, "pruned50": 0.3, "merged": 0.8, "exit": 0.1}[name.split("@")[0]]
        for name in table.rows
    }
    rows = {
        name: replace(row, ms=costs[name], median_ms=costs[name], high_ms=costs[name])
        for name, row in table.rows.items()
    }
    table = table.mapped(lambda found: replace(found, overhead=0.0, costs=costs))
    return replace(table, rows=rows)
