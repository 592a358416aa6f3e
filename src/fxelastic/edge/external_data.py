"""Check the references of an ONNX file to external data files."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from fxelastic.errors import BundleError
from fxelastic.spec.segment import Segment

#: The key of a reference. Files without it need not be parsed.
REFERENCE = b"location"


def check_external_data(data: bytes, segment: Segment) -> None:
    """Check that an ONNX file refers exactly to the files that the manifest lists for it.

    Args:
        data: The bytes of the segment's ONNX file.
        segment: Its entry in the manifest.

    Raises:
        BundleError: The bytes are not an ONNX model, or refer to other files.
    """
    if not segment.data and REFERENCE not in data:
        return
    found = sorted(set(_references(data, segment)))
    if found != sorted(segment.data):
        raise BundleError(
            f"the files that {segment.file} refers to differ from those in manifest.json",
            expected=", ".join(segment.data) or "none",
            got=", ".join(map(ascii, found)) or "none",
            fix="export the bundle again",
        )


def _references(data: bytes, segment: Segment) -> Iterator[str]:
    """The paths of the files that a model refers to, relative to the bundle."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as e:  # protobuf's error, and this layer doesn't depend on protobuf
        raise BundleError(
            f"{segment.file} is not an ONNX model", expected="a valid ONNX file", got=str(e)
        ) from e
    folder = posixpath.dirname(segment.file)
    tensors = list(_graph_tensors(model.graph))
    for function in model.functions:
        tensors += _node_tensors(function.node)
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                yield posixpath.join(folder, entry.value)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)
