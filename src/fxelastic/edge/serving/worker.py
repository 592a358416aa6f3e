"""A process of its own that assembles and optimises subnets, and optimises branches.

Joining ONNX files and optimising them keeps a processor busy for long, and much of it holds the
interpreter's lock: in the serving process it would delay requests. Here it runs at low priority.

The process reads one JSON object a line, ``{"arch": text, "path": text}`` for a subnet or
``{"branch": text, "path": text}``, writes it there, ready for onnxruntime on this machine, and
answers ``{"path": text, "sha256": {file: text, …}}`` or ``{"path": text, "error": text}``. It ends
with its input.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

import onnxruntime as ort

from fxelastic.edge.assembly import assemble, join
from fxelastic.edge.bundle import Bundle, reopen
from fxelastic.edge.digests import digest as digest_of
from fxelastic.spec import Arch

# Protobuf has a limit of 2 GiB; graphs take some of it.
_IN_MEMORY_BYTES = 2**30
# Smaller weights stay in the graph.
_LEAST_BYTES = 1024


def main(folder: str, digest: str, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more.

    Args:
        folder: The bundle's folder.
        digest: The digest of the bundle that is served; another one may lie there by now.
        requests: Lines of JSON.
        answers: Where to write a line for each.
    """
    bundle: Bundle | None = None
    for line in requests:
        request = json.loads(line)
        try:
            bundle = bundle or reopen(Path(folder), digest)
            path = Path(request["path"])
            if "branch" in request:
                written = optimise(os.fspath(bundle.model_path(request["branch"])), path)
            else:
                written = prepare(bundle, Arch.parse(request["arch"]), path)
            answer: dict[str, Any] = {"sha256": written}
        except Exception as e:  # noqa: BLE001 - whatever it is, the other process reports it
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps({"path": request["path"], **answer}), file=answers, flush=True)


def prepare(bundle: Bundle, arch: Arch, path: Path) -> dict[str, str]:
    """Write a subnet as onnxruntime would optimise it when it loads it.

    Args:
        bundle: The bundle.
        arch: The subnet.
        path: The file to write.

    Returns:
        Sha256 of each file that was written, by name.
    """
    if sum(bundle.segment(branch).weight_bytes for branch in arch) < _IN_MEMORY_BYTES:
        # Neither written nor checked: that took a third of the time, and onnxruntime checks, too.
        return optimise(join(bundle, arch).SerializeToString(), path)
    plain = path.with_suffix(".plain.onnx")
    try:
        return optimise(os.fspath(assemble(bundle, arch, plain)), path)
    finally:
        for file in plain.parent.glob(f"{plain.name}*"):
            file.unlink()


def optimise(model: str | bytes, path: Path) -> dict[str, str]:
    """Write a model as onnxruntime would optimise it when it loads it.

    Its large weights are in a second file, which onnxruntime maps: making a session, the longest
    piece of work in the serving process, takes a third to a tenth of the time (ResNet-50: 5 to
    12 ms in place of 28 to 90).

    Args:
        model: The model, or its path.
        path: The file to write.

    Returns:
        Sha256 of each file that was written, by name.
    """
    weights = path.with_suffix(".weights")
    options = ort.SessionOptions()
    # Warnings say that the optimised model fits only this machine, where it stays; errors are also
    # raised.
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = os.fspath(path)
    for key, value in (("file_name", weights.name), ("min_size_in_bytes", str(_LEAST_BYTES))):
        options.add_session_config_entry(
            f"session.optimized_model_external_initializers_{key}", value
        )
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return {file.name: digest_of(file) for file in (path, weights) if file.exists()}
