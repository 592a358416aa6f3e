"""Find regions with a single input and a single output, and open regions that are too large.

On the stream graph, let ``a = idom(b)``, the immediate dominator. If no value strictly between them
is read elsewhere, ``(a, b]`` is a minimal region with one input and one output. Following the
dominators back from the outputs gives the trunk. A region above the cap, or with several of the
model's repeating units, is opened: the search continues along each of its inner paths, and the
operators that join them become glue.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx
from torch import fx

from fxelastic.ir.operators import is_number, is_operator, is_tensor
from fxelastic.passes.flow import Flow
from fxelastic.passes.repeats import instance_path

_FITS = "fit the cap"


@dataclass(frozen=True)
class Unit:
    """Stream operators that stay together, with one output value.

    Attributes:
        nodes: In graph order.
        reads: Stream values and model inputs that it reads.
        writes: Values that others read. Only an operator with several results that different
            operators read has more than one.
        glue: Whether it joins or splits streams and is never replaced.
        reason: Why it is glue or not split further; empty for a single operator.
        openable: Whether it is whole only because it fits the cap.
        n_params: Elements of the distinct parameters read.
    """

    nodes: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]
    glue: bool
    reason: str
    openable: bool
    n_params: int


@dataclass(frozen=True)
class _Vertex:
    """An operator with the ``getitem`` nodes of its results."""

    nodes: tuple[fx.Node, ...]
    values: tuple[fx.Node, ...]  # results that other operators read
    operands: tuple[int, ...]

    @property
    def is_cut(self) -> bool:
        """Whether a boundary may lie on its result."""
        return len(self.values) == 1 and is_tensor(self.values[0])


@dataclass
class _Graph:
    """The stream graph; vertices have topological indices: 0 is the root, the inputs follow."""

    vertices: list[_Vertex]
    readers: list[list[int]]
    idom: list[int]
    outputs: list[int]
    last_reader: list[int] = field(default_factory=list)


def find_units(
    flow: Flow, cap: float, units: frozenset[str], opened: frozenset[fx.Node] = frozenset()
) -> list[Unit]:
    """Split the stream into the smallest units, which the packing joins to blocks.

    Args:
        flow: The classified graph.
        cap: Most parameters of a region that is not opened.
        units: Instances of the repeating units.
        opened: Last values of regions to open although they fit the cap.

    Returns:
        The units in an executable order; the units of an opened region are contiguous.
    """
    graph = _build(flow)
    return _Search(graph, flow, cap, units, opened).run()


def _build(flow: Flow) -> _Graph:
    stream = set(flow.stream)
    index: dict[fx.Node, int] = {}
    vertices = [_Vertex((), (), ())]
    sources = {o for node in flow.stream for o in flow.operands[node] if o not in stream}
    for source in sorted(sources, key=lambda node: node.name):
        index[source] = len(vertices)
        vertices.append(_Vertex((), (source,), (0,)))
    for node in flow.stream:
        if node in index:
            continue
        members = _with_results(node, stream)
        values = _live(members, flow)
        operands = dict.fromkeys(
            index[operand]
            for member in members
            for operand in flow.operands[member]
            if operand not in members
        )
        for member in members:
            index[member] = len(vertices)
        vertices.append(_Vertex(members, values, tuple(operands) or (0,)))
    readers: list[list[int]] = [[] for _ in vertices]
    for i, vertex in enumerate(vertices):
        for operand in vertex.operands:
            if i:
                readers[operand].append(i)
    outputs = list(
        dict.fromkeys(
            index[node]
            for node in flow.stream
            if any(reader.op == "output" for reader in flow.readers[node])
        )
    )
    return _Graph(vertices, readers, _immediate_dominators(vertices), outputs)


def _immediate_dominators(vertices: Sequence[_Vertex]) -> list[int]:
    """The last vertex on every path from the root to a vertex; the root's is the root."""
    graph = networkx.DiGraph()
    graph.add_node(0)
    for i, vertex in enumerate(vertices):
        graph.add_edges_from((operand, i) for operand in vertex.operands)
    found = networkx.immediate_dominators(graph, 0)
    return [0, *(found[i] for i in range(1, len(vertices)))]


def _with_results(node: fx.Node, stream: set[fx.Node]) -> tuple[fx.Node, ...]:
    """An operator and, if it has several results, the nodes that select them."""
    if is_tensor(node) or is_number(node):
        return (node,)
    members = [node]
    for member in members:  # grows while it is read: results may hold results
        if not is_tensor(member) and not is_number(member):
            members += [r for r in member.users if r in stream and r.target is operator.getitem]
    return tuple(dict.fromkeys(members))


def _live(members: tuple[fx.Node, ...], flow: Flow) -> tuple[fx.Node, ...]:
    inside = set(members)
    return tuple(node for node in members if any(r not in inside for r in flow.readers[node]))


class _Search:
    def __init__(
        self,
        graph: _Graph,
        flow: Flow,
        cap: float,
        units: frozenset[str],
        opened: frozenset[fx.Node],
    ) -> None:
        self._opened = opened
        self._graph = graph
        self._flow = flow
        self._cap = cap
        self._units = units
        self._done = [False] * len(graph.vertices)
        self._result: list[Unit] = []
        self._is_output = set(graph.outputs)
        self._instance = [self._innermost(v) for v in graph.vertices]

    def _innermost(self, vertex: _Vertex) -> str | None:
        for node in vertex.nodes:
            for key in reversed(instance_path(node)):
                if key in self._units:
                    return key
        return None

    def run(self) -> list[Unit]:
        # A stack of steps instead of recursion, for deep nesting.
        work: list[tuple[str, int]] = [("chain", output) for output in self._graph.outputs]
        work.reverse()
        while work:
            step, vertex = work.pop()
            if step == "emit":
                self._emit_alone(vertex)
            else:
                work.extend(reversed(self._chain(vertex)))
        return self._result

    def _chain(self, last: int) -> list[tuple[str, int]]:
        """Split the path of dominators down to ``last`` into regions, and emit or open each."""
        path: list[int] = []
        vertex = last
        while vertex and self._graph.vertices[vertex].nodes and not self._done[vertex]:
            path.append(vertex)
            vertex = self._graph.idom[vertex]
        path.reverse()
        steps: list[tuple[str, int]] = []
        segment: list[int] = []
        for i, vertex in enumerate(path):
            segment.append(vertex)
            if not self._graph.vertices[vertex].is_cut and vertex != last:
                continue
            more = self._segment(segment)
            if more is not None:
                # The opened region comes first, then the rest of the path.
                steps = more
                if i + 1 < len(path):
                    steps.append(("chain", last))
                return steps
            segment = []
        return steps

    def _segment(self, segment: list[int]) -> list[tuple[str, int]] | None:
        """Emit the region that ends a segment, or return the steps that open it."""
        last = segment[-1]
        entry = self._graph.idom[segment[0]]
        region = self._closed_region(last, entry)
        if region is not None:
            reason = self._keeps_together(region, last)
            if reason is not None:
                self._emit(region, False, reason)
                return None
        steps: list[tuple[str, int]] = []
        for vertex in segment:
            operands = self._graph.vertices[vertex].operands
            steps += [("chain", operand) for operand in operands if not self._done[operand]]
            steps.append(("emit", vertex))
        return steps

    def _closed_region(self, last: int, entry: int) -> list[int] | None:
        """Vertices of ``(entry, last]``, or None if a value inside it is read elsewhere."""
        graph = self._graph
        inside = {last}
        pending = [last]
        while pending:
            for operand in graph.vertices[pending.pop()].operands:
                if operand == entry or operand in inside:
                    continue
                if not graph.vertices[operand].nodes and entry == 0:
                    continue  # an input of the model
                if not graph.vertices[operand].nodes or self._done[operand]:
                    return None
                if operand in self._is_output or graph.readers[operand][-1] > last:
                    return None
                inside.add(operand)
                pending.append(operand)
        for vertex in inside:
            if vertex != last and any(r not in inside for r in graph.readers[vertex]):
                return None
        if len(graph.vertices[last].values) != 1:
            return None
        if len(self._reads(inside)) > 1:
            return None  # several inputs of the model, or several results of one operator
        return sorted(inside)

    def _keeps_together(self, region: list[int], last: int) -> str | None:
        """The reason to keep a closed region whole; None to open it."""
        join = len(self._graph.vertices[last].operands) > 1
        if len(region) == 1:
            return ""
        if join and self._has_parameters(last):
            return f"{self._name(last)} joins several values and has parameters"
        if not self._parameters(region):
            return "nothing inside has parameters"
        instances = {self._instance[v] for v in region if self._graph.vertices[v].nodes}
        holding = {
            self._instance[v]
            for v in region
            if self._instance[v] is not None and self._has_parameters(v)
        }
        if len(holding) > 1 and len(instances) > 1:
            return None
        size = self._size(region)
        if size > self._cap or self._graph.vertices[last].values[0] in self._opened:
            return self._inseparable(region)
        return f"{size} parameters between its one input and its one output {_FITS}"

    def _inseparable(self, region: list[int]) -> str | None:
        """The reason why a region above the cap can't be opened, or None."""
        for vertex in region:
            several = len(self._graph.vertices[vertex].values) > 1
            if several and self._size([vertex]) > self._cap:
                return f"the results of {self._name(vertex)} go different ways inside"
        return None

    def _emit_alone(self, vertex: int) -> None:
        if self._done[vertex]:
            return
        shape = self._graph.vertices[vertex]
        several_in = len(self._reads({vertex})) > 1
        several_out = len(shape.values) != 1 or not is_tensor(shape.values[0])
        reason = ""
        if several_in:
            reason = f"{self._name(vertex)} joins several values"
        elif several_out:
            reason = f"the results of {self._name(vertex)} go different ways"
        if reason and self._parameters([vertex]):
            reason += " and has parameters"
        self._emit([vertex], bool(reason), reason)

    def _emit(self, region: list[int], glue: bool, reason: str) -> None:
        nodes = [node for v in region for node in self._graph.vertices[v].nodes]
        for vertex in region:
            self._done[vertex] = True
        self._result.append(
            Unit(
                tuple(nodes),
                tuple(self._reads(set(region))),
                _live(tuple(nodes), self._flow),
                glue,
                reason,
                reason.endswith(_FITS),
                self._size(region),
            )
        )

    def _reads(self, region: Iterable[int]) -> list[fx.Node]:
        nodes = [node for v in sorted(region) for node in self._graph.vertices[v].nodes]
        inside = set(nodes)
        return list(
            dict.fromkeys(
                operand
                for node in nodes
                for operand in self._flow.operands[node]
                if operand not in inside
            )
        )

    def _parameters(self, region: Iterable[int]) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for vertex in region:
            for node in self._graph.vertices[vertex].nodes:
                found.update(self._flow.parameters[node])
        return found

    def _has_parameters(self, vertex: int) -> bool:
        return any(self._flow.parameters[node] for node in self._graph.vertices[vertex].nodes)

    def _size(self, region: Sequence[int]) -> int:
        return sum(self._parameters(region).values())

    def _name(self, vertex: int) -> str:
        return next(n.name for n in self._graph.vertices[vertex].nodes if is_operator(n))
