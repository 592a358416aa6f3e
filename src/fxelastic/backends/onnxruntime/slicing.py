"""Cut the parts of single branches out of a converted graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from fxelastic.errors import InternalError
from fxelastic.ir.part_names import name_of

PRODUCER = "fxelastic"

# Numbers by position in names: "pieces.3." before a weight's name, "_17" after other names.
_POSITION = re.compile(r"^pieces\.\d+\.|_\d+$")


class Cutter:
    """Copies parts of one graph, with lookups that all parts share."""

    def __init__(self, model: ir.Model) -> None:
        """Index a graph.

        Args:
            model: The converted graph; it does not change, and the parts share its tensors.
        """
        self._model = model
        self._nodes = {node: i for i, node in enumerate(model.graph)}
        self._initializers = {id(v): i for i, v in enumerate(model.graph.initializers.values())}

    def cut(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
        """Copy the nodes that compute some values from others.

        Args:
            inputs: Values that the copy starts from.
            outputs: Values to compute.

        Returns:
            A model with those inputs and outputs.

        Raises:
            InternalError: The outputs depend on another input of the graph.
        """
        nodes, leaves = _needed(outputs, {id(value) for value in inputs})
        strays = leaves.keys() - {id(value) for value in inputs} - self._initializers.keys()
        if strays:
            names = sorted(str(leaves[stray].name) for stray in strays)
            raise InternalError("a converted branch reads values of another", got=", ".join(names))
        # In the graph's order.
        found = sorted(
            leaves.keys() & self._initializers.keys(), key=self._initializers.__getitem__
        )
        view = ir.GraphView(
            inputs,
            outputs,
            nodes=sorted(nodes, key=self._nodes.__getitem__),
            initializers=[leaves[value] for value in found],
            opset_imports=self._model.graph.opset_imports,
            name="branch",
        )
        return ir.Model(view.clone(), ir_version=self._model.ir_version, producer_name=PRODUCER)


def finish(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the interface of a branch's model, and drop everything that it does not need.

    This drops inputs that no output depends on, initializers without readers, and metadata, which
    contains paths of the exporting machine.

    Args:
        model: The model; changed in place.
        inputs: A name for each of its inputs.
        outputs: A name for each of its outputs.
    """
    graph = model.graph
    _, leaves = _needed(graph.outputs, set())
    for name, value in list(graph.initializers.items()):
        if id(value) not in leaves:
            del graph.initializers[name]
    named = zip(inputs, list(graph.inputs), strict=True)
    used = {name: value for name, value in named if id(value) in leaves}
    graph.inputs[:] = used.values()
    _strip(graph)
    _name_interface(graph, list(used), list(outputs))


def _needed(
    outputs: Iterable[ir.Value], bounds: set[int]
) -> tuple[list[ir.Node], dict[int, ir.Value]]:
    """The nodes that compute values from bounds, and the values without a node that they read."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[int, ir.Value] = {}
    rest = list(outputs)
    while rest:
        value = rest.pop()
        node = value.producer()
        if node is None or id(value) in bounds:
            leaves[id(value)] = value
        elif node not in nodes:
            nodes[node] = None
            rest += _reads(node)
    return list(nodes), leaves


def _reads(node: ir.Node) -> list[ir.Value]:
    """Values that a node reads, including those that its subgraphs capture."""
    reads = [value for value in node.inputs if value is not None]
    for graph in _subgraphs(node):
        inside: set[int] = {id(v) for v in (*graph.inputs, *graph.initializers.values())}
        for inner in graph:
            reads += [value for value in _reads(inner) if id(value) not in inside]
            inside |= {id(value) for value in inner.outputs}
        reads += [value for value in graph.outputs if id(value) not in inside]
    return reads


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _strip(graph: ir.Graph) -> None:
    graph.metadata_props.clear()
    graph.doc_string = None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for i, node in enumerate(graph.all_nodes()):
        node.name = f"{node.op_type}_{i}"
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            # Names of sizes belong to the conversion and mean nothing in another graph.
            if value.shape is not None:
                value.shape = ir.Shape([s if isinstance(s, int) else None for s in value.shape])


def _name_interface(graph: ir.Graph, inputs: list[str], outputs: list[str]) -> None:
    """Name inputs and outputs; every output gets its own node."""
    seen: set[int] = set()
    for i, value in enumerate(graph.outputs):
        if value.producer() is None or id(value) in seen:
            # An input, a constant, or the same value twice can't be renamed to an output.
            node = ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[i] = node.outputs[0]
        seen.add(id(graph.outputs[i]))
    interface = dict(zip(inputs, graph.inputs, strict=True))
    interface |= dict(zip(outputs, graph.outputs, strict=True))
    fixed = {id(value) for value in interface.values()}
    values, names, taken = list(interface.values()), list(interface), set(interface)
    for value in _values(graph):
        if id(value) not in fixed:
            values.append(value)
            names.append(_own_name(value, taken))
    ir.convenience.rename_values(values, names)


def _own_name(value: ir.Value, taken: set[str]) -> str:
    """A free name that does not depend on the branch's position in the conversion."""
    base = name_of(_POSITION.sub("", value.name or "value")) or "value"
    name, n = base, 2
    while name in taken:
        name, n = f"{base}_{n}", n + 1
    taken.add(name)
    return name


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of a graph and its subgraphs, in order."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        for inner in _subgraphs(node):
            yield from _values(inner)
        yield from node.outputs
