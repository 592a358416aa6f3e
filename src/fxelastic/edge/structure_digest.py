"""Digest of a bundle without its weights: of everything that decides latencies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
from onnx import numpy_helper

from fxelastic.errors import BundleError

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle

_FLOATS = (
    *(onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE),
    *(onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16),
)
#: Operators with constant operands of any dtype that decide sizes. Elsewhere, sizes, axes and
#: indices are ``int64``.
_SIZED_BY_OPERANDS = ("Resize", "Upsample", "Range", "Slice", "Pad", "Tile", "CumSum", "OneHot")
#: The index of the bias among the inputs. The exporter's optimiser drops a bias of zeros, so a
#: branch may have a bias only after training.
_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "QLinearConv": 8}
#: The indices of a factor of one or a summand of zero, which it also drops.
_NO_OPERATION = {"Mul": (0, 1), "Add": (0, 1), "Sub": (1,), "Div": (1,)}


def structure_digest(bundle: Bundle) -> str:
    """Sha256 of everything in a bundle that decides how long its branches take.

    Bundles that differ in their weights alone have the same digest: the same supernet before and
    after training. It covers the search space, the values between blocks, the operator set, and
    of every branch's graph the operators, their attributes, and the dtypes and shapes of weights.
    The values of constants count if they are sizes, axes or indices.

    The exporter's optimiser drops biases of zeros, factors of one and summands of zero, so the
    digest leaves these out, too.

    Args:
        bundle: The bundle; its files are read one after the other.

    Raises:
        BundleError: A file is missing, damaged, or not an ONNX model.
    """
    manifest = bundle.manifest
    digest = hashlib.sha256()
    facts = [
        manifest.schema_version,
        manifest.backend.name,
        manifest.backend.opset,
        manifest.model.dynamic_batch,
        manifest.inputs,
        [result.value for result in manifest.results],
        [
            (value.name, value.dtype, value.dims, value.produced, value.last_read)
            for value in manifest.values
        ],
    ]
    if manifest.model.sizes:
        facts.append([symbol.to_json() for symbol in manifest.model.sizes])
    digest.update(_line(facts))
    known: dict[str, bytes] = {}
    for segment in manifest.segments:
        if segment.sha256 not in known:
            known[segment.sha256] = _of_file(bundle, segment.id)
        # Tables of earlier releases have no expressions, and no caches.
        facts_of = vars(segment.spec).items()
        spec = [value for name, value in facts_of if name not in ("flops_by_size", "cache")]
        spec += [segment.inputs, segment.outputs]
        spec += [kept.to_json() for kept in segment.spec.cache]
        digest.update(_line(spec) + known[segment.sha256])
    return digest.hexdigest()


def _of_file(bundle: Bundle, branch: str) -> bytes:
    data = bundle.read(branch)
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as e:  # protobuf's own error, and protobuf is not a library of this layer
        raise BundleError(
            f"{bundle.segment(branch).file} is not an ONNX model",
            expected="a valid ONNX file",
            got=str(e) or type(e).__name__,
            fix="export the bundle again",
        ) from e
    return graph_digest(model)


def graph_digest(model: onnx.ModelProto) -> bytes:
    """Sha256 of a model's operators, without its weights and the names of its values."""
    digest = hashlib.sha256()
    opsets = sorted((opset.domain, opset.version) for opset in model.opset_import)
    digest.update(_line(opsets))
    for function in model.functions:
        names = {name: f"input {i}" for i, name in enumerate(function.input)}
        description = _Description(names, {}, 0).nodes(function.node, function.output)
        digest.update(_line((function.domain, function.name, description)))
    digest.update(_line(_of_graph(model.graph, {}, 0)))
    return digest.digest()


def _of_graph(graph: onnx.GraphProto, around: Mapping[str, Any], depth: int) -> list[Any]:
    """A graph as nested lists.

    Args:
        graph: The graph.
        around: Descriptions of the values of the enclosing graphs, by name.
        depth: How many graphs enclose it.
    """
    names = {value.name: f"input {i} at {depth}" for i, value in enumerate(graph.input)}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    description = _Description({**around, **names}, tensors, depth)
    for sparse in graph.sparse_initializer:
        description.values[sparse.values.name] = ["sparse", list(sparse.dims)]
    outputs = [value.name for value in graph.output]
    return description.nodes(graph.node, outputs)


class _Description:
    """Describes nodes by their inputs instead of by names."""

    def __init__(
        self, values: Mapping[str, Any], tensors: Mapping[str, onnx.TensorProto], depth: int
    ) -> None:
        self.values: dict[str, Any] = dict(values)
        self._tensors = dict(tensors)
        self._depth = depth
        self._n_nodes = 0

    def nodes(self, nodes: Iterable[onnx.NodeProto], outputs: Sequence[str]) -> list[Any]:
        """The nodes in order, and the results."""
        found = [line for node in nodes if (line := self._node(node)) is not None]
        return [found, [self._value(name) for name in outputs]]

    def _node(self, node: onnx.NodeProto) -> list[Any] | None:
        """A node; None for one that passes a value on."""
        if node.op_type == "Constant" and [a.name for a in node.attribute] == ["value"]:
            self._tensors[node.output[0]] = node.attribute[0].t
            return None
        passed = self._passed(node)
        if passed is not None:
            self.values[node.output[0]] = self._value(passed)
            return None
        number = self._n_nodes
        self._n_nodes += 1
        for i, name in enumerate(node.output):
            self.values[name] = [self._depth, number, i]
        inputs = list(node.input)
        bias = _BIAS.get(node.op_type)
        if bias is not None and len(inputs) == bias + 1 and inputs[bias] in self._tensors:
            del inputs[bias]
        sized = node.op_type in _SIZED_BY_OPERANDS
        return [
            node.domain,
            node.op_type,
            [self._value(name, sized and i > 0) for i, name in enumerate(inputs)],
            [bool(name) for name in node.output],
            [self._attribute(a) for a in sorted(node.attribute, key=lambda a: a.name)],
        ]

    def _passed(self, node: onnx.NodeProto) -> str | None:
        """The input that equals the node's output but for one number; None for other nodes."""
        if node.op_type == "Identity":
            return str(node.input[0])
        for i in _NO_OPERATION.get(node.op_type, ()):
            tensor = self._tensors.get(node.input[i])
            other = node.input[1 - i]
            if tensor is None or other in self._tensors or tensor.data_type not in _FLOATS:
                continue
            if all(size == 1 for size in tensor.dims):
                return str(other)
        return None

    def _value(self, name: str, whole: bool = False) -> Any:
        tensor = self._tensors.get(name)
        if tensor is None:
            return self.values.get(name, "")
        shape = [tensor.data_type, list(tensor.dims)]
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        if outside or not (whole or tensor.data_type == onnx.TensorProto.INT64):
            return shape
        return [*shape, numpy_helper.to_array(tensor).tobytes().hex()]

    def _attribute(self, attribute: onnx.AttributeProto) -> list[Any]:
        graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        if graphs:
            around = {**self.values, **{name: self._value(name) for name in self._tensors}}
            return [attribute.name, [_of_graph(graph, around, self._depth + 1) for graph in graphs]]
        plain = onnx.AttributeProto()
        plain.CopyFrom(attribute)
        plain.ClearField("doc_string")
        for tensor in (plain.t, *plain.tensors) if plain.HasField("t") or plain.tensors else ():
            tensor.ClearField("name")
            tensor.ClearField("doc_string")
        return [attribute.name, plain.SerializeToString(deterministic=True).hex()]


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
