"""What an ONNX file refers to outside of itself."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from fxelastic.errors import BundleError
from fxelastic.spec.segment import Segment

#: The key of a reference. Most files have none, and need not be parsed.
REFERENCE = b"location"


def check_external_data(data: bytes, segment: Segment) -> None:
    """Refuse an ONNX file that reads other files than the manifest lists for it.

    Args:
        data: The bytes of the segment's ONNX file.
        segment: What the manifest says.

    Raises:
        BundleError: The bytes are no ONNX model, or refer to other files.
    """
    if not segment.data and REFERENCE not in data:
        return
    found = sorted(set(_references(data, segment)))
    if found != sorted(segment.data):
        raise BundleError(
            f"{segment.file} refers to other files than manifest.json lists for {segment.id!r}",
            expected=", ".join(segment.data) or "none",
            got=", ".join(map(ascii, found)) or "none",
            fix="export the bundle again",
        )


def _references(data: bytes, segment: Segment) -> Iterator[str]:
    """Paths of the files referred to, relative to the bundle."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as e:  # protobuf's own error, and protobuf is not a library of this layer
        raise BundleError(f"{segment.file} is no ONNX model", expected="one", got=str(e)) from e
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
