"""A cascade as one ONNX model, which decides by itself where samples leave.

Between two sessions a decision in Python takes some 40 µs, as long as a small network. In one model
it takes a few: an ``If`` ends with the results of an exit if all samples of the batch leave there.
Otherwise it runs the next segment on the rows of the others, and puts their results among those of
the samples that left. Thresholds are an input, so cascades that differ in them alone share a
session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fxelastic.edge.assembly import declared, rename_graph, tensor_type
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.segments import CascadeSegment, segments_of
from fxelastic.edge.executor import Array
from fxelastic.edge.searching.choice import default_result
from fxelastic.errors import UsageError
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.symbols import dimension
from fxelastic.spec.value_info import ValueInfo

#: The names of the input with the thresholds, float64 ``(exits,)``, and of the last result, int64
#: ``(N,)``: the number of the subnet at which each sample left.
THRESHOLDS, LEFT_AT = "cascade/thresholds", "cascade/left_at"

_OF, _NEXT = ": ", " | "
# Reductions take their axes as an input from here on.
_LEAST_OPSET = 18
_UNKNOWN_ROWS = -1
_IR_ALONE = 8


@dataclass(frozen=True)
class CascadeForm:
    """A cascade without its thresholds.

    ``str(form)`` is ``max_softmax: original@0;exit@1 | original@1``; `CascadeForm.parse` reads it.

    Attributes:
        segments: Its segments, in the order in which they run.
        confidence: The name of its confidence.
    """

    segments: tuple[CascadeSegment, ...]
    confidence: str

    @classmethod
    def of(cls, cascade: Cascade) -> CascadeForm:
        """The form of a cascade."""
        return cls(segments_of(cascade), cascade.confidence)

    @property
    def branches(self) -> tuple[str, ...]:
        """All of its branches, in the order in which they run."""
        return tuple(branch for segment in self.segments for branch in segment.branches)

    def __str__(self) -> str:
        return f"{self.confidence}{_OF}{_NEXT.join(map(str, self.segments))}"

    @classmethod
    def parse(cls, text: str) -> CascadeForm:
        """Read the text of a form."""
        confidence, _, segments = text.partition(_OF)
        return cls(tuple(map(CascadeSegment.parse, segments.split(_NEXT))), confidence)

    def is_joinable(self, bundle: Bundle) -> bool:
        """Whether one model can compute it.

        Each exit must compute all results of the model, and each value must have its samples in
        rows: not in a batch of fixed size, for example. Confidences of other packages are functions
        of Python.

        Args:
            bundle: The bundle.
        """
        model = bundle.manifest.model
        outputs = {value.name for value in bundle.outputs}
        logits = bundle.outputs[default_result(bundle)]
        between = {name for names in self._needed(bundle) for name in names}
        return (
            len(self.segments) > 1
            and self.confidence in _CONFIDENCES
            and model.dynamic_batch
            and bundle.manifest.backend.opset >= _LEAST_OPSET
            and logits.dtype in ("float16", "float32", "float64")
            and logits.dims[:1] == (model.batch,)
            and len(logits.dims) == 2
            and isinstance(logits.dims[1], int)
            and logits.dims[1] > 1
            and all(outputs == set(segment.results(bundle)) for segment in self.segments)
            and all(_rows(value, model.batch) in (0, None) for value in bundle.outputs)
            and all(_rows(bundle.values[v], model.batch) != _UNKNOWN_ROWS for v in between)
        )

    def assembled(self, bundle: Bundle, thresholds: Sequence[float]) -> onnx.ModelProto:
        """The model with results named as the bundle's, and thresholds as its default.

        Raises:
            UsageError: One model can't compute it, or the bundle has no such branch.
            BundleError: A file of the bundle is damaged.
        """
        if not self.is_joinable(bundle):
            raise UsageError(
                "one model can't compute this cascade",
                expected="exits with all results of the model, a batch of any size with a row for "
                f"each sample in every value, and a confidence among {', '.join(_CONFIDENCES)}",
                got=str(self),
                fix="assemble its subnets, or run it with edge.run_cascade or edge.serve",
            )
        model = self.join(bundle, [result.name for result in bundle.manifest.results])
        default = numpy_helper.from_array(np.array(thresholds, np.float64), THRESHOLDS)
        model.graph.initializer.append(default)
        return model

    def join(self, bundle: Bundle, names: Sequence[str] | None = None) -> onnx.ModelProto:
        """The model: from the bundle's inputs and `THRESHOLDS` to its outputs and `LEFT_AT`.

        Args:
            bundle: A bundle in which the form `is_joinable`.
            names: The names of the outputs; by default they are numbered.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: A file of the bundle is damaged.
        """
        batch = bundle.manifest.model.batch
        builder = _CascadeBuilder(
            parts=[segment.model(bundle) for segment in self.segments],
            needed=self._needed(bundle),
            confidence=_CONFIDENCES[self.confidence],
            logits=default_result(bundle),
            results=bundle.outputs,
            rows={name: _rows(value, batch) for name, value in bundle.values.items()},
        )
        if names is None:
            names = [f"cascade/result_{i}" for i in range(len(bundle.outputs))]
        return builder.model(bundle.inputs, [*names, LEFT_AT], bundle.constants, batch)

    def _needed(self, bundle: Bundle) -> list[tuple[str, ...]]:
        """For each segment but the first, the values before it that it or a later one reads."""
        needed: dict[str, None] = {}
        found: list[tuple[str, ...]] = []
        for segment in self.segments[:0:-1]:
            for branch in reversed(segment.branches):
                part = bundle.segment(branch)
                needed = {name: None for name in needed if name not in part.outputs}
                needed |= dict.fromkeys(part.inputs)
            found.append(tuple(name for name in sorted(needed) if name not in bundle.constants))
        return found[::-1]


class _GraphParts:
    """Nodes and weights of a graph, whose names all begin with a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.sparse: list[onnx.SparseTensorProto] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one result, and return the result's name."""
        name = f"{self.prefix}{operator}_{len(self.nodes)}"
        output = output or name
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: Any, dtype: str | None = None) -> str:
        """Add an array, and return its name."""
        name = f"{self.prefix}constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


@dataclass(frozen=True)
class _CascadeBuilder:
    """Adds the segments of a cascade to a graph, each inside of the one before.

    Attributes:
        parts: The model of each segment.
        needed: For each segment but the first, the values before it that are read from there on.
        confidence: Adds the nodes of a confidence.
        logits: The number of the result that it is computed from.
        results: The results of the model.
        rows: For each value the dimension of the samples, if it has one.
    """

    parts: Sequence[onnx.ModelProto]
    needed: Sequence[Sequence[str]]
    confidence: Callable[[_GraphParts, str], str]
    logits: int
    results: Sequence[ValueInfo]
    rows: Mapping[str, int | None]

    def model(
        self,
        inputs: Sequence[ValueInfo],
        names: Sequence[str],
        constants: Mapping[str, Array],
        batch: str,
    ) -> onnx.ModelProto:
        """The whole model; changes the parts."""
        opsets = {opset.domain: opset.version for part in self.parts for opset in part.opset_import}
        graph = _GraphParts("cascade/")
        state = {value.name: value.name for value in inputs}
        state |= {name: graph.constant(array) for name, array in constants.items()}
        thresholds = [self._threshold(i) for i in range(len(self.parts) - 1)]
        if thresholds != [THRESHOLDS]:
            lengths = graph.constant([1] * len(thresholds), "int64")
            split = helper.make_node(
                "Split", [THRESHOLDS, lengths], thresholds, name="cascade/split"
            )
            graph.nodes.append(split)
        for result, name in zip(self.run_from(0, graph, state), names, strict=True):
            graph.node("Identity", result, output=name)
        made = helper.make_graph(
            graph.nodes,
            "cascade",
            [
                *(declared(value.name, value) for value in inputs),
                helper.make_tensor_value_info(
                    THRESHOLDS, TensorProto.DOUBLE, [len(self.parts) - 1]
                ),
            ],
            [
                *(declared(name, v) for name, v in zip(names, self.results, strict=False)),
                helper.make_tensor_value_info(LEFT_AT, TensorProto.INT64, [batch]),
            ],
            graph.weights,
            sparse_initializer=graph.sparse,
        )
        return helper.make_model(
            made,
            producer_name="fxelastic",
            ir_version=max(part.ir_version for part in self.parts),
            opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()],
        )

    def run_from(self, i: int, graph: _GraphParts, state: Mapping[str, str]) -> list[str]:
        """Add segment ``i`` and all that follow.

        Args:
            i: The number of the segment.
            graph: The graph to add to.
            state: Names in the graph of the bundle's values before the segment.

        Returns:
            Names of the results and, unless it is the last segment, of where each sample left.
        """
        part = self.parts[i].graph
        prefix = f"{graph.prefix}{i}/"
        computed = {value.name: f"{prefix}{value.name}" for value in part.output}
        read = {value.name: state[value.name] for value in part.input}
        rename_graph(part, {**read, **computed}, prefix)
        graph.nodes += part.node
        graph.weights += part.initializer
        graph.sparse += part.sparse_initializer
        state = {**state, **computed}
        results = [state[value.name] for value in self.results]
        if i == len(self.parts) - 1:
            return results
        wide = graph.node("Cast", results[self.logits], to=TensorProto.DOUBLE)
        # Not a number is not above any threshold.
        leaves = graph.node("GreaterOrEqual", self.confidence(graph, wide), self._threshold(i))
        left, further = (_GraphParts(f"{prefix}{name}/") for name in ("left", "further"))
        ends = [left.node("Identity", result) for result in results]
        ends.append(_number(left, leaves, i))
        joined = self._further(i, further, results, state, leaves)
        outputs = [f"{prefix}result_{k}" for k in range(len(ends))]
        graph.nodes.append(
            helper.make_node(
                "If",
                [_all(graph, leaves)],
                outputs,
                name=f"{prefix}if",
                then_branch=self._branch(left, ends),
                else_branch=self._branch(further, joined),
            )
        )
        return outputs

    def _threshold(self, i: int) -> str:
        return THRESHOLDS if len(self.parts) == 2 else f"cascade/threshold_{i}"

    def _further(
        self,
        i: int,
        graph: _GraphParts,
        results: Sequence[str],
        state: Mapping[str, str],
        leaves: str,
    ) -> list[str]:
        """The results of all samples, of which some run the segments behind ``i``."""
        stay = graph.node("Not", leaves)
        fewer = dict(state)
        for name in self.needed[i]:
            dim = self.rows[name]
            if dim is not None:
                fewer[name] = graph.node("Compress", state[name], stay, axis=dim)
        others = self.run_from(i + 1, graph, fewer)
        places = graph.node("Transpose", graph.node("NonZero", stay))
        joined = [
            other if self.rows[value.name] is None else graph.node("ScatterND", own, places, other)
            for own, other, value in zip(results, others, self.results, strict=False)
        ]
        if i == len(self.parts) - 2:
            return [*joined, _number(graph, leaves, i, i + 1)]
        each = _number(graph, leaves, i)
        return [*joined, graph.node("ScatterND", each, places, others[-1])]

    def _branch(self, graph: _GraphParts, results: Sequence[str]) -> onnx.GraphProto:
        types = [*map(tensor_type, self.results), TensorProto.INT64]
        outputs = [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip(results, types, strict=True)
        ]
        return helper.make_graph(
            graph.nodes, graph.prefix, [], outputs, graph.weights, sparse_initializer=graph.sparse
        )


def decision_alone(n_classes: int) -> onnx.ModelProto:
    """A cascade of one exit whose segments compute nothing, to time a decision.

    Args:
        n_classes: The number of scores of a sample.
    """
    x, y = (ValueInfo(name, "float32", ("N", n_classes)) for name in "xy")
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "nothing", [declared("x", x)], [declared("y", y)])
    opsets = [helper.make_opsetid("", _LEAST_OPSET)]
    parts = [helper.make_model(graph, ir_version=_IR_ALONE, opset_imports=opsets) for _ in range(2)]
    rows = {"x": 0, "y": 0}
    return _CascadeBuilder(parts, [("x",)], _max_softmax, 0, [y], rows).model(
        [x], ["cascade/y", LEFT_AT], {}, "N"
    )


def separate_names(graph: onnx.GraphProto, outer: Set[str] = frozenset()) -> None:
    """Rename values of inner graphs that have the name of a value outside, in place.

    onnxruntime numbers the values that it adds in each graph anew, and then refuses what it wrote.

    Args:
        graph: A graph with subgraphs.
        outer: The names of the values around it.
    """
    known = outer | _defined(graph)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inner = attribute.g
                taken = known & _defined(inner)
                rename_graph(inner, {name: f"{inner.name}{name}" for name in taken}, "")
                separate_names(inner, known)


def _defined(graph: onnx.GraphProto) -> set[str]:
    results = (name for node in graph.node for name in node.output if name)
    return {*results, *(tensor.name for tensor in graph.initializer)}


def _rows(value: ValueInfo, batch: str) -> int | None:
    """The dimension of the samples; None if it has none, `_UNKNOWN_ROWS` if not just one."""
    mixed = [
        dim
        for dim in value.dims
        if isinstance(dim, str) and dim != batch and batch in dimension(dim).symbols
    ]
    places = [i for i, dim in enumerate(value.dims) if dim == batch]
    if mixed or len(places) > 1:
        return _UNKNOWN_ROWS
    return places[0] if places else None


def _number(graph: _GraphParts, flags: str, i: int, other: int | None = None) -> str:
    """For each flag, one number or the other."""
    numbers = (graph.constant(n, "int64") for n in (i, i if other is None else other))
    return graph.node("Where", flags, *numbers)


def _all(graph: _GraphParts, flags: str) -> str:
    """Whether all are true, as for a batch of no samples."""
    least = graph.node("ReduceMin", graph.node("Cast", flags, to=TensorProto.INT32), keepdims=0)
    return graph.node("Cast", least, to=TensorProto.BOOL)


def _max_softmax(graph: _GraphParts, logits: str) -> str:
    last = graph.constant([1], "int64")
    return graph.node("ReduceMax", _probabilities(graph, logits), last, keepdims=0)


def _margin(graph: _GraphParts, logits: str) -> str:
    two = f"{graph.prefix}two_{len(graph.nodes)}"
    inputs = [_probabilities(graph, logits), graph.constant([2], "int64")]
    outputs = [two, f"{two}_places"]
    graph.nodes.append(helper.make_node("TopK", inputs, outputs, name=two, axis=1))
    return graph.node("Sub", _column(graph, two, 0), _column(graph, two, 1))


def _entropy(graph: _GraphParts, logits: str) -> str:
    found = _probabilities(graph, logits)
    logs = graph.node("Log", graph.node("Max", found, graph.constant(1e-300, "float64")))
    last = graph.constant([-1], "int64")
    total = graph.node("ReduceSum", graph.node("Mul", found, logs), last, keepdims=0)
    count = graph.node("Gather", graph.node("Shape", logits), graph.constant(1, "int64"))
    most = graph.node("Log", graph.node("Cast", count, to=TensorProto.DOUBLE))
    one = graph.constant(1.0, "float64")
    return graph.node("Add", graph.node("Div", total, most), one)


def _probabilities(graph: _GraphParts, logits: str) -> str:
    return graph.node("Softmax", logits, axis=1)


def _column(graph: _GraphParts, values: str, i: int) -> str:
    return graph.node("Gather", values, graph.constant(i, "int64"), axis=1)


# As `CONFIDENCES`: from logits ``(N, C)`` in float64 to ``(N,)``.
_CONFIDENCES: Mapping[str, Callable[[_GraphParts, str], str]] = {
    "max_softmax": _max_softmax,
    "margin": _margin,
    "entropy": _entropy,
}
