"""Join branches into one ordinary ONNX model."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.external_data_helper import load_external_data_for_model

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.float_operators import keep_float
from fxelastic.errors import BundleError
from fxelastic.spec.arch import Arch
from fxelastic.spec.value_info import ValueInfo

_PRODUCER = "fxelastic"


def join(bundle: Bundle, arch: Arch) -> onnx.ModelProto:
    """The model of a subnet, as `edge.assemble` writes it.

    Raises:
        UsageError: The arch is not in the bundle's search space.
        BundleError: A file of the bundle is damaged.
    """
    specs = bundle.space.specs(arch)
    needed = {value.name for value in bundle.outputs}
    used: list[str] = []
    for spec in reversed(specs):
        segment = bundle.segment(spec.id)
        if needed.intersection(segment.outputs):
            used.insert(0, spec.id)
            needed.update(segment.inputs)
    names = _value_names(bundle)
    model = _chained(bundle, used, names)
    _add_interface(model.graph, bundle, arch, names)
    return _finished(bundle, model)


def join_part(bundle: Bundle, branches: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Join some branches into a model that reads and computes values of the bundle.

    Args:
        bundle: The bundle.
        branches: The ids of the branches, in the order in which they run.
        outputs: The names of the values to compute.

    Raises:
        UsageError: The bundle has no such branch.
        BundleError: A file of the bundle is damaged.
    """
    segments = [bundle.segment(branch) for branch in branches]
    computed = {name for segment in segments for name in segment.outputs}
    read = dict.fromkeys(name for segment in segments for name in segment.inputs)
    model = _chained(bundle, branches, {name: name for name in (*read, *computed)})
    for name in read:
        if name not in computed:
            model.graph.input.append(declared(name, bundle.values[name]))
    model.graph.output.extend(declared(name, bundle.values[name]) for name in outputs)
    return _finished(bundle, model)


def _chained(bundle: Bundle, branches: Sequence[str], names: Mapping[str, str]) -> onnx.ModelProto:
    """The nodes and weights of branches in one model, without inputs and outputs."""
    model = onnx.ModelProto(producer_name=_PRODUCER, ir_version=1)
    # Change the graph in place: a copy would double the memory for weights.
    graph = model.graph
    graph.name = bundle.manifest.model.name or "subnet"
    known = {size for value in bundle.values.values() for size in value.dims}
    for branch_id in branches:
        part = _load(bundle, branch_id)
        _check_interface(bundle, branch_id, part)
        model.ir_version = max(model.ir_version, part.ir_version)
        _add_opsets(model, part, branch_id)
        segment = bundle.segment(branch_id)
        # Rename only the interface: inner values of two branches may have the same name.
        interface = {name: names[name] for name in (*segment.inputs, *segment.outputs)}
        rename_graph(part.graph, interface, f"{branch_id}/")
        _forget_sizes(part.graph, known)
        graph.node.extend(part.graph.node)
        for tensor in part.graph.initializer:
            _move(tensor, graph.initializer.add())
        graph.sparse_initializer.extend(part.graph.sparse_initializer)
        graph.value_info.extend(part.graph.value_info)
    return model


def _forget_sizes(graph: onnx.GraphProto, known: Container[str | int]) -> None:
    """Clear the names of inner sizes that are not the bundle's, such as ``unk__0``.

    Tools name sizes in each file anew. onnxruntime takes sizes of one name for equal, and lets
    values share memory that have different sizes in different branches.
    """
    for value in graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and dim.dim_param not in known:
                dim.ClearField("dim_param")


def _finished(bundle: Bundle, model: onnx.ModelProto) -> onnx.ModelProto:
    keep_float(model.graph)
    _remove_unused(model.graph)
    _share_initializers(model.graph)
    if not model.opset_import:
        # The model consists only of inputs and constants.
        model.opset_import.add(version=bundle.manifest.backend.opset)
        model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    return model


def _load(bundle: Bundle, branch_id: str) -> onnx.ModelProto:
    segment = bundle.segment(branch_id)
    try:
        verified = bundle.model(branch_id)
        model: onnx.ModelProto = onnx.ModelProto.FromString(verified.data)
        if verified.place is not None:
            load_external_data_for_model(model, os.fspath(verified.place))
    except BundleError:
        raise
    except Exception as e:  # protobuf's error, and this layer doesn't depend on protobuf
        raise BundleError(
            f"{segment.file} is not an ONNX model",
            expected="a valid ONNX file",
            got=f"{type(e).__name__}: {e}",
            fix="export the bundle again",
        ) from e
    return model


def _check_interface(bundle: Bundle, branch_id: str, part: onnx.ModelProto) -> None:
    segment = bundle.segment(branch_id)
    for what, expected, values in (
        ("inputs", segment.inputs, part.graph.input),
        ("outputs", segment.outputs, part.graph.output),
    ):
        found = tuple(value.name for value in values)
        if found != expected:
            raise BundleError(
                f"the {what} of {segment.file} differ from those of {branch_id!r} in manifest.json",
                expected=", ".join(expected) or "none",
                got=", ".join(map(ascii, found)) or "none",
                fix="export the bundle again",
            )
    if part.functions:
        raise BundleError(
            f"{segment.file} must not contain functions",
            expected="a graph of operators only",
            got=", ".join(ascii(function.name) for function in part.functions),
            fix="export the bundle again",
        )


def _value_names(bundle: Bundle) -> dict[str, str]:
    """Map the names of values in the bundle to their names in the assembled model."""
    inputs = {value.name for value in bundle.inputs}
    reserved = inputs | {result.name for result in bundle.manifest.results}
    names = {
        name: name if name in inputs or name not in reserved else f"value/{name}"
        for name in bundle.values
    }
    for result in bundle.manifest.results:
        value = bundle.values[result.value]
        # A value takes the name of its first result; further results are copies.
        if value.produced >= 0 and names[value.name] in (value.name, f"value/{value.name}"):
            names[value.name] = result.name
    return names


def _add_opsets(model: onnx.ModelProto, part: onnx.ModelProto, branch_id: str) -> None:
    known = {opset.domain: opset.version for opset in model.opset_import}
    for opset in part.opset_import:
        if known.setdefault(opset.domain, opset.version) != opset.version:
            raise BundleError(
                f"the operator set of branch {branch_id!r} differs from that of the other branches",
                expected=f"version {known[opset.domain]} of {opset.domain or 'ai.onnx'}",
                got=f"version {opset.version}",
                fix="export the bundle again",
            )
    del model.opset_import[:]
    for domain, version in known.items():
        model.opset_import.add(domain=domain, version=version)


def _add_interface(
    graph: onnx.GraphProto, bundle: Bundle, arch: Arch, names: Mapping[str, str]
) -> None:
    """Declare inputs and outputs, and add a node for each result that no branch outputs."""
    for value in bundle.inputs_of(arch):
        graph.input.append(declared(value.name, value))
    for result, value in zip(bundle.manifest.results, bundle.outputs_of(arch), strict=True):
        source = names[value.name]
        if value.constant is not None:
            source = f"constant/{result.name}"
            array = bundle.constants[value.name]
            graph.initializer.append(
                helper.make_tensor(
                    source, tensor_type(value), array.shape, array.tobytes(), raw=True
                )
            )
        if source != result.name:
            name = f"result/{result.name}"
            graph.node.append(helper.make_node("Identity", [source], [result.name], name=name))
        graph.output.append(declared(result.name, value))


def declared(name: str, value: ValueInfo) -> onnx.ValueInfoProto:
    """The declaration of a value of a bundle as an input or a result of a model."""
    return helper.make_tensor_value_info(name, tensor_type(value), list(value.dims))


def tensor_type(value: ValueInfo) -> int:
    """ONNX's number of a value's dtype."""
    if value.dtype == "bfloat16":
        return int(onnx.TensorProto.BFLOAT16)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)))


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes, weights and shapes that no output depends on."""
    outputs = {value.name for value in graph.output}
    needed, produced = set(outputs), set[str]()
    kept: list[bool] = []
    for node in reversed(graph.node):
        kept.append(bool(needed.intersection(node.output)))
        if kept[-1]:
            needed.update(_reads([node]))
            produced.update(node.output)
    _keep(graph.node, kept[::-1])
    _keep(graph.initializer, [t.name in needed for t in graph.initializer])
    _keep(graph.sparse_initializer, [t.values.name in needed for t in graph.sparse_initializer])
    inner = produced - outputs
    _keep(graph.value_info, [value.name in inner for value in graph.value_info])


def _reads(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Names that nodes read, including their subgraphs; some may be inner names."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                names |= _reads(graph.node)
                names.update(value.name for value in graph.output)
    return names


def _share_initializers(graph: onnx.GraphProto) -> None:
    """Store equal weights once."""
    shapes = Counter(_shape(tensor) for tensor in graph.initializer)
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        name = tensor.name
        alone = shapes[_shape(tensor)] == 1
        renamed[name] = name if alone else first.setdefault(_content(tensor), name)
    _keep(graph.initializer, [renamed[t.name] == t.name for t in graph.initializer])
    rename_graph(graph, renamed, "")


def _content(tensor: onnx.TensorProto) -> bytes:
    """A digest of what a tensor holds, whatever its name."""
    if not tensor.HasField("raw_data"):
        rest = onnx.TensorProto()
        rest.CopyFrom(tensor)
        rest.name = ""
        return hashlib.sha256(rest.SerializeToString(deterministic=True)).digest()
    # Serialising so many bytes takes longer than their digest.
    digest = hashlib.sha256(str(_shape(tensor)).encode())
    digest.update(tensor.raw_data)
    return digest.digest()


def _shape(tensor: onnx.TensorProto) -> tuple[int, ...]:
    return (tensor.data_type, *tensor.dims)


def _move(source: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """Copy a tensor, whose bytes are removed from the source; several times as fast as a copy."""
    data = source.raw_data if source.HasField("raw_data") else None
    source.ClearField("raw_data")
    target.MergeFrom(source)
    if data is not None:
        target.raw_data = data


def _keep(field: Any, kept: Sequence[bool]) -> None:
    """Delete the items of a repeated protobuf field that are not kept, without copies of others."""
    for i in reversed(range(len(field))):
        if not kept[i]:
            del field[i]


def rename_graph(graph: onnx.GraphProto, names: Mapping[str, str], prefix: str) -> None:
    """Rename every value and node of a graph and its subgraphs in place.

    Args:
        graph: The graph.
        names: New names of values by their old names.
        prefix: Added to the name of each value that is not in ``names``, and of each node.
    """

    def new(name: str) -> str:
        # An empty name means that an optional operand is omitted.
        return names.get(name, f"{prefix}{name}") if name else name

    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new(value.name)
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
        sparse.indices.name = new(sparse.indices.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = new(annotation.tensor_name)
    for node in graph.node:
        # Nodes may have no name, but no two may have the same.
        node.name = f"{prefix}{node.name}" if node.name else ""
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        for attribute in node.attribute:
            # Accessing an unset attribute.g returns an empty graph; renaming that would set it.
            inner = [attribute.g] if attribute.HasField("g") else []
            for subgraph in (*inner, *attribute.graphs):
                rename_graph(subgraph, names, prefix)
