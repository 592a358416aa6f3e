"""A bundle one of whose files never ends."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fxelastic.edge.bundle import Bundle, load
from fxelastic.spec.bundle_files import MANIFEST_NAME, FileInfo
from tests.edge.serving.tiny_bundle import write_bundle


def with_endless_loop(data: bytes) -> bytes:
    """A model that first goes round in a loop."""
    model = onnx.ModelProto.FromString(data)
    given = model.graph.input[0].name
    value = helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, None)
    out = helper.make_tensor_value_info("state_out", onnx.TensorProto.FLOAT, None)
    go = helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Abs", ["state"], ["state_out"]),
        ],
        "body",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []), go, value],
        [helper.make_tensor_value_info("go_out", onnx.TensorProto.BOOL, []), out],
    )
    for node in model.graph.node:
        node.input[:] = ["looped" if name == given else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    loop = helper.make_node("Loop", ["", "always", given], ["looped"], body=body)
    model.graph.node.insert(0, loop)
    return model.SerializeToString()


def write_endless(folder: Path) -> Bundle:
    """Write a bundle whose first block never ends."""
    bundle = write_bundle(folder, depth=1, width=2, size=2)
    segments = []
    for segment in bundle.manifest.segments:
        if segment.spec.start == 0:
            data = with_endless_loop(bundle.read(segment.id))
            (folder / segment.file).write_bytes(data)
            info = FileInfo(segment.file, len(data), hashlib.sha256(data).hexdigest())
            segment = replace(segment, model=info)
        segments.append(segment)
    manifest = replace(bundle.manifest, segments=tuple(segments))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return load(folder)
