"""A tiny bundle written by hand: four blocks, a context, a constant result, a shared tensor.

Its ONNX files are no ONNX, as nobody looks into them, but for those that share a tensor.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from fxelastic.spec import ORIGINAL, BranchSpec, branch_id
from fxelastic.spec.bundle_files import MANIFEST_NAME, FileInfo
from fxelastic.spec.manifest import BackendInfo, BlockInfo, Manifest, ModelInfo, Result
from fxelastic.spec.segment import Segment
from fxelastic.spec.value_info import ValueInfo
from fxelastic.spec.verification import SoftFusionInfo, Verification

VALUES = (
    ValueInfo("x", "float32", ("N", 3), -1, 1),
    ValueInfo("unused", "int64", ("N",), -1, -1),
    ValueInfo("mask", "bool", ("N", 1), 0, 3),
    ValueInfo("h1", "float32", ("N", 8), 1, 2),
    ValueInfo("h2", "float32", ("64*N", 8), 2, 4),
    ValueInfo("y", "float32", ("N", 2), 3, 4),
    ValueInfo("ids", "int64", (2,), -1, 4, "branches/data/ids.bin"),
)

# kind, start, stop, inputs, outputs, data
BRANCHES = (
    (ORIGINAL, 0, 1, ("x",), ("mask",), ()),
    (ORIGINAL, 1, 2, ("x",), ("h1",), ("branches/data/w.bin",)),
    ("merged", 1, 3, ("x", "mask"), ("h2",), ()),
    (ORIGINAL, 2, 3, ("h1",), ("h2",), ("branches/data/w.bin",)),
    ("pruned", 2, 3, ("h1",), ("h2",), ()),
    (ORIGINAL, 3, 4, ("h2", "mask"), ("y",), ()),
)

DATA = {"branches/data/ids.bin": bytes(16), "branches/data/w.bin": b"weights"}


def contents() -> dict[str, bytes]:
    """Every file but the manifest, by its path."""
    files = {f"branches/{branch_id(*branch[:3])}.onnx": b"" for branch in BRANCHES}
    files = {path: f"the file {path}".encode() for path in files}
    for branch in BRANCHES:
        if branch[5]:
            files[f"branches/{branch_id(*branch[:3])}.onnx"] = reference("data/w.bin")
    return files | DATA


def reference(location: str) -> bytes:
    """An ONNX model with a tensor in another file."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[7])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model = onnx.ModelProto(ir_version=10)
    model.graph.initializer.append(tensor)
    return model.SerializeToString()


def file_info(path: str, data: bytes) -> FileInfo:
    return FileInfo(path, len(data), hashlib.sha256(data).hexdigest())


def manifest() -> Manifest:
    files = contents()
    segments = []
    for kind, start, stop, inputs, outputs, data in BRANCHES:
        spec = BranchSpec(branch_id(kind, start, stop), kind, start, stop, 10, 100)
        path = f"branches/{spec.id}.onnx"
        segments.append(
            Segment(spec, file_info(path, files[path]), inputs, outputs, 40, data, False, "")
        )
    return Manifest(
        ModelInfo("Net", "0" * 64, 40, True, 2),
        BackendInfo("onnxruntime", 20, "at-once", "", {"torch": "2.13"}),
        tuple(BlockInfo(f"layer{i}", "context" if i == 0 else "basic") for i in range(4)),
        tuple(segments),
        VALUES,
        ("x", "unused"),
        (Result("logits", "y"), Result("features", "h2"), Result("ids", "ids")),
        {
            "dict": {
                "logits": {"tensor": 0},
                "hidden": {"tuple": [{"tensor": 1}, {"value": None}]},
                "ids": {"list": [{"tensor": 2}, {"text": "Kind.A"}]},
            },
            "type": "Output",
        },
        tuple(file_info(path, data) for path, data in DATA.items()),
        Verification(
            (2, 3),
            {"float32": 1e-4},
            {"float32": 1e-3},
            ("original@0,original@1,original@2,original@3",),
            True,
            {},
            {"Identity": 1},
            (SoftFusionInfo("add-layer-norm", "layer1", "layer2"),),
        ),
        batched=("x", "unused"),
    )


def write(folder: Path) -> Path:
    """Write the bundle into a new folder."""
    for path, data in contents().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / MANIFEST_NAME).write_bytes(manifest().to_json())
    return folder
