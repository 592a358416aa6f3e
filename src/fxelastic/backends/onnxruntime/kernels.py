"""The kernels that onnxruntime runs for a graph, compared with the kernels of its parts.

The whole graph and each part of it are optimised. If the multisets of kernels are equal, no kernel
spans a boundary between parts.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

SHAPE_PREFIX = "shape:"
"""Prefix of kernels that compute sizes: a few integers, repeated in each part that needs them."""

IDENTITY = "Identity"
"""A kernel that renames a value; onnxruntime removes it inside a graph."""

_PROTOBUF_LIMIT_BYTES = 2**31 - 2**20
_SIZE_SOURCES = frozenset({"Shape", "Size"})


def export_onnx(
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
    dynamic_batch: bool = True,
) -> onnx.ModelProto:
    """Convert a module to ONNX with torch's dynamo exporter.

    Args:
        module: A module in eval mode, or a graph module.
        example_inputs: Its positional inputs, with a batch of at least 2, since torch.export treats
            a size of 1 as a constant.
        dynamic_batch: Whether dimension 0 of every tensor input is symbolic, unless the module
            fixes it.

    Returns:
        The model, optimised by the exporter (constants folded, no dead nodes).
    """
    # Clones, since the exporter makes a single input of a tensor that is passed twice.
    inputs = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, tuple(example_inputs))
    shapes = torch.export.ShapesCollection()
    for value in torch.utils._pytree.tree_leaves(inputs):
        if dynamic_batch and isinstance(value, torch.Tensor) and value.dim() > 0:
            shapes[value] = {0: torch.export.Dim.AUTO}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            dynamic_shapes=shapes.dynamic_shapes(module, inputs),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the dynamo exporter returned no program")
    return program.model_proto


def export_each(
    pieces: Sequence[tuple[torch.nn.Module, Sequence[Any]]], dynamic_batch: bool = True
) -> list[onnx.ModelProto]:
    """Convert several modules together.

    A conversion has a high fixed cost, so the modules are converted side by side, with their own
    inputs and outputs, and then separated.

    Args:
        pieces: Modules, each with its positional inputs (see `export_onnx`). All inputs and outputs
            are tensors.
        dynamic_batch: See `export_onnx`.

    Returns:
        The models, in order.
    """
    with torch.no_grad():
        counts = [len(_as_tuple(module(*inputs))) for module, inputs in pieces]
    side_by_side = _SideBySide(pieces)
    model = export_onnx(side_by_side, [x for _, inputs in pieces for x in inputs], dynamic_batch)
    extractor = onnx.utils.Extractor(model)
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    models = []
    for (_, example_inputs), count in zip(pieces, counts, strict=True):
        reads, inputs = inputs[: len(example_inputs)], inputs[len(example_inputs) :]
        computes, outputs = outputs[:count], outputs[count:]
        models.append(extractor.extract_model(reads, computes))
    return models


class _SideBySide(torch.nn.Module):
    """Independent modules in one call."""

    def __init__(self, pieces: Sequence[tuple[torch.nn.Module, Sequence[Any]]]) -> None:
        super().__init__()
        self.pieces = torch.nn.ModuleList([module for module, _ in pieces])
        self.n_inputs = [len(inputs) for _, inputs in pieces]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call each with its own inputs."""
        results: list[torch.Tensor] = []
        for piece, count in zip(self.pieces, self.n_inputs, strict=True):
            results += _as_tuple(piece(*inputs[:count]))
            inputs = inputs[count:]
        return tuple(results)


def _as_tuple(result: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def optimised_kernels(model: onnx.ModelProto | str | os.PathLike[str]) -> Counter[str]:
    """Count the kernels that a model is optimised to on CPU at ``ORT_ENABLE_EXTENDED``.

    Args:
        model: An ONNX model, or the path of one.

    Returns:
        Kernel → number of nodes, including nodes of nested graphs. A kernel's name is
        ``[domain.]op_type[details]``, where the details, e.g. ``[Relu]`` or ``[+sum]``, name the
        fused operators. Kernels that only compute sizes have the prefix ``shape:``.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        # Weights go to another file, which is not read.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        with _source(model, Path(folder)) as source:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(str(optimised), load_external_data=False).graph
    return Counter(_kernels(graph, frozenset()))


@contextlib.contextmanager
def _source(model: onnx.ModelProto | str | os.PathLike[str], folder: Path) -> Iterator[str | bytes]:
    if not isinstance(model, onnx.ModelProto):
        yield os.fspath(model)
    elif model.ByteSize() < _PROTOBUF_LIMIT_BYTES:
        yield model.SerializeToString()
    else:
        path = folder / "source.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, str(path), save_as_external_data=True, location="source.bin")
        yield str(path)


def _kernels(graph: onnx.GraphProto, outer_sizes: frozenset[str]) -> Iterator[str]:
    """Name the kernels of a graph.

    Args:
        graph: An optimised graph.
        outer_sizes: Values of enclosing graphs that hold sizes.
    """
    constants = {initializer.name for initializer in graph.initializer}
    sizes = set(outer_sizes)
    for node in graph.node:
        read = [name for name in node.input if name and name not in constants]
        computes_sizes = node.op_type in _SIZE_SOURCES or (
            bool(read) and all(name in sizes for name in read)
        )
        nested = [
            subgraph
            for attribute in node.attribute
            for subgraph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
        ]
        if node.op_type == "Constant":
            constants.update(node.output)
            continue
        if computes_sizes and not nested:
            sizes.update(node.output)
            yield SHAPE_PREFIX + _kernel(node)
        else:
            yield _kernel(node)
        for subgraph in nested:
            yield from _kernels(subgraph, frozenset(sizes))


def _kernel(node: onnx.NodeProto) -> str:
    name = node.op_type
    if node.domain not in ("", "ai.onnx"):
        name = f"{node.domain}.{name}"
    details = [
        attribute.s.decode()
        for attribute in node.attribute
        if attribute.name == "activation" and attribute.s
    ]
    if node.op_type == "FusedConv" and len(node.input) > 3 and node.input[3]:
        details.insert(0, "+sum")
    return f"{name}[{','.join(details)}]" if details else name


@dataclass(frozen=True)
class KernelDiff:
    """The differences between the kernels of a graph's parts together and those of the graph.

    Attributes:
        lost: Kernels of the graph that the parts lack, with their number.
        extra: Kernels of the parts that the graph lacks, with their number.
        bookkeeping: Differences that are not fusions: computed sizes and ``Identity``. Positive if
            the parts have more.
    """

    lost: Mapping[str, int]
    extra: Mapping[str, int]
    bookkeeping: Mapping[str, int]

    @property
    def equal(self) -> bool:
        """Whether graph and parts run the same kernels apart from bookkeeping."""
        return not self.lost and not self.extra

    def __bool__(self) -> bool:
        raise TypeError("a KernelDiff has no truth value; use .equal")

    def __str__(self) -> str:
        if self.equal:
            text = "same kernels"
        else:
            text = "; ".join(
                f"{what}: " + ", ".join(f"{n} {kernel}" for kernel, n in sorted(kernels.items()))
                for what, kernels in (
                    ("lost by cutting", self.lost),
                    ("added by cutting", self.extra),
                )
                if kernels
            )
        if self.bookkeeping:
            changes = ", ".join(f"{n:+d} {name}" for name, n in sorted(self.bookkeeping.items()))
            text += f" (bookkeeping, not a fusion: {changes})"
        return text


def compare_kernels(whole: Mapping[str, int], parts: Iterable[Mapping[str, int]]) -> KernelDiff:
    """Compare the kernels of a graph with those of its parts together.

    Args:
        whole: The kernels of the graph, from `optimised_kernels`.
        parts: The kernels of each part.

    Returns:
        The differences; ``.equal`` if no kernel spans a boundary.
    """
    change: Counter[str] = Counter()
    for part in parts:
        change.update(part)
    change.subtract(whole)
    changed = {kernel: n for kernel, n in change.items() if n}
    bookkeeping = {kernel: n for kernel, n in changed.items() if _is_bookkeeping(kernel)}
    return KernelDiff(
        lost={k: -n for k, n in changed.items() if n < 0 and k not in bookkeeping},
        extra={k: n for k, n in changed.items() if n > 0 and k not in bookkeeping},
        bookkeeping=bookkeeping,
    )


def _is_bookkeeping(kernel: str) -> bool:
    return kernel.startswith(SHAPE_PREFIX) or kernel == IDENTITY
